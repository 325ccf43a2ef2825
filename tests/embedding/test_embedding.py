"""The embedding's own checks, its file, and what may be compared with what."""

import dataclasses
import hashlib
import json

import pytest
import safetensors.torch
import torch

from task2vec_ext.distance.comparable import check_comparable
from task2vec_ext.embedding import Embedding, HeadInfo, ProbeInfo
from task2vec_ext.fisher import HeadSettings
from task2vec_ext.probe.layers import Layer
from task2vec_ext.settings import EmbedSettings

LAYERS = (
    Layer("conv1", "conv", 0, 3, 27),
    Layer("bn1", "batchnorm", 3, 6, 1),
    Layer("fc", "linear", 6, 8, 3),
)

PROBE = ProbeInfo("resnet18", "IMAGENET1K_V1", "ab" * 32, "fc", {"size": 112})
SETTINGS = EmbedSettings(include_batchnorm=True, head=HeadSettings(l2=1e-3))


def with_head(**changes) -> EmbedSettings:
    return dataclasses.replace(SETTINGS, head=HeadSettings(**{"l2": 1e-3} | changes))


def with_settings(**changes) -> EmbedSettings:
    return dataclasses.replace(SETTINGS, **changes)


def make(name: str = "birds", **changes) -> Embedding:
    fields = {
        "fisher": torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        "prior": torch.full((8,), 1e-7, dtype=torch.float64),
        "layers": LAYERS,
        "probe": PROBE,
        "head": HeadInfo(2, 0.75, 0.1 + 0.2),
        "settings": SETTINGS,
        "num_samples": 40,
        "num_skipped": 1,
        "name": name,
        "classes": ("Zaunkönig", "山雀"),
    }
    return Embedding(**{**fields, **changes})


def assert_same(a: Embedding, b: Embedding) -> None:
    for field in dataclasses.fields(Embedding):
        mine, theirs = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == theirs.dtype
            assert mine.numpy().tobytes() == theirs.numpy().tobytes()  # to the bit, -0.0 included
        else:
            assert mine == theirs
            assert type(mine) is type(theirs)


def test_norm_is_the_sum_and_layer_the_slice():
    embedding = make(fisher=torch.arange(8, dtype=torch.float64))
    assert embedding.norm == 28.0
    assert embedding.layer("fc").tolist() == [6.0, 7.0]
    assert len(embedding) == 8
    with pytest.raises(ValueError, match=r"expected one of conv1, bn1, fc; got 'conv2'"):
        embedding.layer("conv2")


def test_repr_is_one_line_that_names_what_matters():
    text = repr(make())
    assert "\n" not in text
    for part in ("'birds'", "K=8", "N=40", "norm=", "75.0%", "resnet18", "IMAGENET1K_V1"):
        assert part in text


def test_print_says_what_it_is_how_sure_and_what_to_do_next():
    torch.manual_seed(0)
    means = torch.rand(32, 8)
    fisher = (means.double() * torch.tensor([2.0] * 8 + [1.0] * 24, dtype=torch.float64)[:, None]).sum(0) / 40
    lines = str(make(fisher=fisher, group_means=means)).splitlines()
    assert len(lines) <= 6
    groups = make(fisher=fisher, group_means=means).groups
    assert f"{fisher.sum():.4g} ± {groups.norm_error():.2g} nats" in lines[1]
    for part in ("'birds'", "8 filters", "resnet18", "40 images, 1 unreadable", "75.0%", "signed", "distance_matrix"):
        assert part in "\n".join(lines)
    assert "±" not in str(make())


def test_embedding_does_not_share_memory_with_the_caller():
    fisher, metadata = torch.ones(8, dtype=torch.float64), {"taxonomy": {"ranks": ("order", "class")}}
    embedding = make(fisher=fisher, metadata=metadata)
    fisher[0] = 7
    metadata["taxonomy"]["ranks"] = "changed"
    assert embedding.fisher[0] == 1
    assert embedding.metadata == {"taxonomy": {"ranks": ["order", "class"]}}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fisher": torch.ones(8)}, TypeError, "fisher to be a torch.float64"),
        ({"prior": [1.0] * 8}, TypeError, "prior to be a torch.float64 tensor, got list"),
        ({"fisher": torch.ones(2, 4, dtype=torch.float64)}, ValueError, r"shape \[2, 4\]"),
        ({"fisher": torch.ones(0, dtype=torch.float64)}, ValueError, "K >= 1"),
        ({"prior": torch.ones(7, dtype=torch.float64)}, ValueError, r"prior of shape \[8\]"),
        ({"fisher": torch.tensor([0.0] * 7 + [-1e-9], dtype=torch.float64)}, ValueError, "index 7"),
        (
            {"fisher": torch.tensor([0.0, torch.nan] * 4, dtype=torch.float64)},
            ValueError,
            "nan at index 1.*4 such",
        ),
        ({"prior": torch.tensor([torch.inf] * 8, dtype=torch.float64)}, ValueError, "prior to be finite"),
        ({"layers": LAYERS[:2]}, ValueError, r"tile \[0, 8\), got layers up to 6"),
        ({"layers": LAYERS[1:]}, ValueError, "starts at 0"),
        ({"layers": (Layer("a", "conv", 0, 5, 1), Layer("b", "conv", 4, 8, 1))}, ValueError, "starts at 5"),
        ({"layers": (Layer("a", "conv", 0, 0, 1), Layer("b", "conv", 0, 8, 1))}, ValueError, "stop > start"),
        ({"layers": (Layer("a", "conv", 0, 8, 0),)}, ValueError, "fan_in >= 1"),
        ({"layers": (Layer("a", "pool", 0, 8, 1),)}, ValueError, "layer kind"),
        (
            {"layers": (Layer("a", "conv", 0, 4, 1), Layer("a", "conv", 4, 8, 1))},
            ValueError,
            "names that differ",
        ),
        ({"metadata": {"seed": torch.tensor(0)}}, TypeError, "JSON can hold"),
        ({"metadata": {"lr": float("nan")}}, TypeError, "JSON can hold"),
        ({"num_samples": 0}, ValueError, "num_samples >= 1"),
        ({"num_skipped": -1}, ValueError, "num_skipped >= 0"),
        ({"head": HeadInfo(2, 1.5, 0.1)}, ValueError, "a score of at most 1"),
        ({"head": HeadInfo(2, 0.5, float("inf"))}, ValueError, "finite nll"),
        ({"classes": ("one",)}, ValueError, "each of the 2 classes, got 1"),
    ],
)
def test_embedding_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes)


# ---- the file


def test_save_and_load_give_back_every_bit(tmp_path):
    extreme = torch.tensor([0.0, 5e-324, 1e-300, 1 / 3, 1.0, 2.4, 1e200, 1.7e308], dtype=torch.float64)
    for name, classes in (
        ('Vögel 鳥 \U0001f426 "quoted" \\', ("a", "b")),
        ("", None),
        ("caf\udce9\n", ("", "\0")),
    ):
        embedding = make(name, fisher=extreme, classes=classes)
        embedding.save(tmp_path / "ü 鳥.safetensors")
        assert_same(Embedding.load(tmp_path / "ü 鳥.safetensors"), embedding)


def test_group_means_are_saved_and_a_file_without_them_loads(tmp_path):
    means = torch.rand(32, 8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([2.0] * 8 + [1.0] * 24, dtype=torch.float64)  # 40 dealt to 32 in turn
    embedding = make(fisher=sizes @ means.double() / 40, group_means=means)
    embedding.save(tmp_path / "with")
    assert_same(Embedding.load(tmp_path / "with"), embedding)
    make().save(tmp_path / "without")
    assert set(safetensors.torch.load_file(tmp_path / "without")) == {"fisher", "prior"}  # as older versions wrote it
    assert Embedding.load(tmp_path / "without").group_means is None


@pytest.mark.parametrize(
    ("means", "error", "message"),
    [
        (
            torch.ones(32, 8, dtype=torch.float64),
            TypeError,
            "a torch.float32 tensor, got torch.float64",
        ),
        (torch.ones(31, 8), ValueError, r"group_means of shape \[32, 8\] .* for 40 images, got shape \[31, 8\]"),
        (torch.full((32, 8), 2.0), ValueError, "whose mean is fisher, got one that differs by up to 1"),
        (torch.full((32, 8), torch.nan), ValueError, "differs by up to nan"),
    ],
)
def test_group_means_that_do_not_fit_are_refused(means, error, message):
    with pytest.raises(error, match=message):
        make(fisher=torch.ones(8, dtype=torch.float64), group_means=means)


def test_save_is_deterministic_and_any_safetensors_reader_reads_it(tmp_path):
    for path in ("a", "b"):
        make().save(tmp_path / path)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a")["fisher"], make().fisher)


def test_load_refuses_every_changed_byte_every_truncation_and_a_longer_file(tmp_path):
    path = tmp_path / "birds.safetensors"
    make().save(path)
    whole = path.read_bytes()
    for index in range(len(whole)):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(whole)
            damaged[index] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"Embedding.load: .*birds\.safetensors"):
                Embedding.load(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"birds\.safetensors"):
            Embedding.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        Embedding.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found no such file"),
        (b"", "not a safetensors file"),
        (b"PK\x03\x04 a zip, as torch.save writes", "not a safetensors file"),
        (safetensors.torch.save({"fisher": torch.ones(2)}), "not written by Embedding.save"),
        (safetensors.torch.save({"fisher": torch.ones(2)}, {"task2vec_ext": "[]"}), "damaged"),
        (safetensors.torch.save({"fisher": torch.ones(2)}, {"task2vec_ext": "[" * 100_000}), "damaged"),
        (
            safetensors.torch.save(
                {"fisher": torch.ones(2)}, {"task2vec_ext": json.dumps({"format": 1, "sha256": ""})}
            ),
            "damaged",
        ),
        (
            safetensors.torch.save(
                {"fisher": torch.ones(2)}, {"task2vec_ext": json.dumps({"format": 5, "sha256": "0" * 64})}
            ),
            r"newer task2vec_ext \(format 5; this one reads up to 4\): upgrade",
        ),
    ],
    ids=["missing", "empty", "zip", "foreign", "no-record", "deep", "no-digest", "newer"],
)
def test_load_refuses_what_is_no_embedding(tmp_path, content, message):
    path = tmp_path / "file.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Embedding.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_of_older_formats_are_read(tmp_path, version):
    path = tmp_path / "old.safetensors"
    fields = make()._fields()
    for name in ("cross_fit", "held_out_score", "held_out_nll", "num_not_held_out"):
        fields["settings"]["head"].pop(name, None)
        fields["head"].pop(name, None)
    if version < 3:
        _as_format_2(fields, version)

    def encoded(digest):
        text = json.dumps({"format": version, "sha256": digest, "embedding": fields})
        tensors = {"fisher": make().fisher, "prior": make().prior}
        return safetensors.torch.save(tensors, metadata={"task2vec_ext": text})

    path.write_bytes(encoded(hashlib.sha256(encoded("0" * 64)).hexdigest()))
    old, one_head = Embedding.load(path), with_head(cross_fit=None)
    if version < 3:
        like = {"prior_scale": 2e-7, "task_digest": "d1", "metadata": {"domain": "birds"}, "version": "0.1.0"}
    else:
        like = {}
    assert_same(old, make(settings=one_head, **like))
    check_comparable([old, make(settings=one_head)])
    with pytest.raises(ValueError, match="head cross_fit: None against 5"):
        check_comparable([old, make()])


def _as_format_2(fields, version):
    """Change the fields to those of a file of version 0.1."""
    settings, probe, head = fields.pop("settings"), fields["probe"], fields["head"]
    head |= settings.pop("head")
    fields["recipe"] = {
        **settings,
        "preprocess": probe.pop("preprocess"),
        "head_layer": probe.pop("head"),
        "prior_scale": 2e-7,
        "task_digest": "d1",
        "task_metadata": {"domain": "birds"},
        "version": "0.1.0",
    }
    for name in ("prior_scale", "epoch_nll", "task_digest", "metadata", "version"):
        del fields[name]
    if version == 1:  # one loss alone, and other names
        del fields["recipe"]["loss"], head["metric"]
        head["num_classes"], head["accuracy"] = head.pop("num_outputs"), head.pop("score")


# ---- check_comparable


def test_check_comparable_accepts_what_may_differ():
    check_comparable([])
    estimators = ("exact", "signed", "sampled")
    settings = [dataclasses.replace(SETTINGS, estimator=e, seed=i) for i, e in enumerate(estimators)]
    head = dataclasses.replace(make().head, num_outputs=7, score=0.5, nll=2.0)
    check_comparable([make(settings=one) for one in settings] + [make(num_samples=3, head=head, classes=None)])
    empirical = dataclasses.replace(SETTINGS, estimator="empirical")
    check_comparable([make(settings=empirical), make(settings=empirical)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"probe": ProbeInfo("resnet34", "mine.pth", "cd" * 32, "fc", {"size": 112})},
            r"resnet18 IMAGENET1K_V1 \(ab.* against resnet34 mine",
        ),
        (
            {"layers": (Layer("conv1", "conv", 0, 8, 27),)},
            r"layers: Layer\(name='conv1'.*stop=3.* against .*stop=8",
        ),
        ({"probe": dataclasses.replace(PROBE, preprocess={"size": 96})}, "preprocess size: 112 against 96"),
        ({"probe": dataclasses.replace(PROBE, preprocess=None)}, "preprocess: .* against None"),
        ({"settings": with_settings(include_batchnorm=False)}, "include_batchnorm: True against False"),
        ({"settings": with_settings(estimator="empirical")}, "estimator: signed against empirical"),
        ({"settings": with_settings(estimator="variational")}, "estimator: signed against variational"),
        ({"settings": with_head(method="adam")}, "head method: lbfgs against adam"),
        ({"settings": with_head(l2=1.0)}, "head l2: 0.001 against 1.0"),
        ({"settings": with_head(class_balanced=True)}, "head class_balanced: False against True"),
    ],
)
def test_check_comparable_names_both_and_the_difference(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_comparable([make(), make("also birds"), make("fish", **changes)])
    assert "'birds' (number 0) and 'fish' (number 2)" in str(caught.value)


def test_check_comparable_lists_every_difference_and_where_one_layer_list_goes_on():
    longer = (*LAYERS, Layer("more", "conv", 8, 9, 1))
    nine = torch.ones(9, dtype=torch.float64)
    other = make(fisher=nine, prior=nine, layers=longer, settings=with_head(l2=1.0))
    with pytest.raises(ValueError, match=r"layers: 3 \(K = 8\) against 4 \(K = 9\); head l2: 0.001 against 1.0"):
        check_comparable([make(), other])
