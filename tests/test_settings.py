"""The settings: one form, lossless JSON, what contradicts itself, and what keeps embeddings from being compared."""

import dataclasses
import json

import pytest
from small import small_probe

from task2vec_ext import EmbedSettings, HeadSettings, VariationalSettings
from task2vec_ext.losses import CrossEntropy, Dense, MultiLabel, PseudoLabels, Regression

VARIATIONAL = EmbedSettings(estimator="variational")


@pytest.mark.parametrize(
    "settings",
    [
        EmbedSettings(),
        EmbedSettings(CrossEntropy(class_weights=(1.0, 2.0), label_smoothing=0.1), "exact", 100, None, 2**63 - 1),
        EmbedSettings(MultiLabel(), layers=["layer3", "layer4"], include_batchnorm=True),
        EmbedSettings(Regression(noise=(1.0, 0.5)), rel_error=0.05),
        EmbedSettings(Dense(), head=HeadSettings(l2=0.1)),
        EmbedSettings(PseudoLabels(num_clusters=7), head=HeadSettings(class_balanced=True)),
        EmbedSettings(head=HeadSettings("adam"), dtype="bfloat16"),
        dataclasses.replace(VARIATIONAL, variational=VariationalSettings("authors", 1e-3, "weights", 2, 300)),
    ],
    ids=lambda settings: settings.loss_object.name,
)
def test_json_gives_back_the_same_settings(settings):
    record = settings.to_json()
    again = EmbedSettings.from_json(json.loads(json.dumps(record)))
    assert again.to_json() == record
    assert settings.changes(again) == []
    assert settings.differences(again) == []
    assert EmbedSettings.from_json({}) == EmbedSettings()  # what a record does not say has its default


def test_every_option_has_one_form():
    assert EmbedSettings("cross_entropy") == EmbedSettings(CrossEntropy())
    assert HeadSettings().l2 is None  # of the features' scale
    assert HeadSettings("adam").l2 == 1e-4
    assert EmbedSettings(layers=["a"]) == EmbedSettings(layers=("a",))
    assert VARIATIONAL.variational == VariationalSettings()


def test_a_record_of_a_newer_version_is_refused():
    with pytest.raises(ValueError, match=r"cannot read this record .*'temperature'.*upgrade"):
        EmbedSettings.from_json({**EmbedSettings().to_json(), "temperature": 2})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": "best"}, ValueError, "estimator to be one of exact, signed"),
        ({"loss": "hinge"}, ValueError, "loss to be one of"),
        ({"seed": -1}, ValueError, "seed from 0"),
        ({"seed": True}, TypeError, "seed as a whole number"),
        ({"num_samples": 0}, ValueError, "num_samples >= 1"),
        ({"dtype": "float16"}, ValueError, "dtype to be one of float32, tf32, bfloat16; got 'float16'"),
        ({"rel_error": 0.0}, ValueError, "rel_error > 0"),
        ({"layers": "layer4"}, TypeError, "a list of names"),
        ({"loss": "regression", "head": HeadSettings(class_balanced=True)}, ValueError, "class_balanced with classes"),
        ({"loss": "multilabel", "head": HeadSettings("adam")}, NotImplementedError, "plain cross-entropy"),
        ({"variational": VariationalSettings()}, ValueError, "estimator='variational' alone"),
        ({"estimator": "variational", "rel_error": 0.1}, ValueError, "rel_error with a per-sample estimator"),
        ({"estimator": "variational", "loss": "dense"}, NotImplementedError, "a loss of one class an image"),
    ],
)
def test_what_is_impossible_is_refused_when_it_is_said(options, error, message):
    with pytest.raises(error, match=message):
        EmbedSettings(**options)


def test_check_knows_what_the_probe_has():
    probe = small_probe()
    assert EmbedSettings().check(probe) == probe.layers()
    assert EmbedSettings(layers=["layer4"]).check(probe) == probe.layers(["layer4"])
    with pytest.raises(ValueError, match="layer9"):
        EmbedSettings(layers=["layer9"]).check(probe)
    with pytest.raises(ValueError, match="leave include_batchnorm off"):
        dataclasses.replace(VARIATIONAL, include_batchnorm=True).check(probe)


@pytest.mark.parametrize(
    ("other", "differences"),
    [
        ({"seed": 5, "num_samples": 9, "rel_error": 0.1, "estimator": "exact"}, []),
        ({"estimator": "sampled", "loss": "multilabel"}, []),
        ({"estimator": "empirical"}, ["estimator: signed against empirical"]),
        ({"loss": "regression"}, ["loss: cross_entropy against regression"]),
        ({"loss": CrossEntropy(label_smoothing=0.1)}, ["loss label_smoothing: None against 0.1"]),
        ({"loss": CrossEntropy(class_weights=(1.0, 2.0))}, []),  # of each task's own classes
        ({"head": HeadSettings(l2=1.0)}, ["head l2: None against 1.0"]),
        ({"dtype": "bfloat16"}, ["dtype: float32 against bfloat16"]),
        ({"include_batchnorm": True}, ["include_batchnorm: False against True"]),
    ],
)
def test_differences_are_what_keeps_two_embeddings_from_being_compared(other, differences):
    assert EmbedSettings().differences(EmbedSettings(**other)) == differences


def test_changes_are_all_options_that_differ():
    found = EmbedSettings().changes(EmbedSettings(seed=5, num_samples=9, head=HeadSettings(l2=1.0)))
    assert found == ["num_samples: None against 9", "seed: 0 against 5", "head l2: None against 1.0"]


def test_override_replaces_what_is_given_and_checks_it():
    settings = EmbedSettings(seed=3, estimator="exact")
    assert settings.override(seed=None, num_samples=4) == EmbedSettings(seed=3, estimator="exact", num_samples=4)
    assert settings.override(loss=None) is settings
    assert VARIATIONAL.override(estimator="exact") == EmbedSettings(estimator="exact")
    with pytest.raises(ValueError, match="num_samples >= 1"):
        settings.override(num_samples=0)
