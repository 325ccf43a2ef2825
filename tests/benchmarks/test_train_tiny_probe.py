"""The script that trained the shipped probe."""

import importlib.util
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from task2vec_ext.demo.studio import TRAINED, UNSEEN
from task2vec_ext.probe.tiny import TinyResNet, tiny_weights_path

FILE = Path(__file__).parents[2] / "benchmarks" / "train_tiny_probe.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _as_before():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def shipped():
    probe = TinyResNet()
    probe.load_state_dict(load_file(tiny_weights_path()), strict=True)
    return probe.eval()


def test_shipped_probe_recognises_new_images_of_trained_kinds(script, shipped):
    kinds = [k for group in TRAINED.values() for k in group]
    images, labels = script.make_images(kinds, 6, seed=123)
    with torch.no_grad():
        features = torch.from_numpy(script.probe_features(shipped, images)).float()
        right = shipped.fc(features).argmax(1) == labels
    assert right.double().mean() > 0.75  # 198 images, measured 0.89: six standard errors


def test_shipped_probe_separates_kinds_it_never_saw_better_than_an_untrained_one(script, shipped):
    torch.manual_seed(0)
    kinds = [k for group in UNSEEN.values() for k in group]
    images, labels = script.make_images(kinds, 24, seed=321)
    trained, untrained = (
        script.linear_probe_accuracy(script.probe_features(probe, images), labels) for probe in (shipped, TinyResNet())
    )
    assert trained > 0.6
    assert trained > untrained + 0.25


def test_linear_probe_accuracy_is_measured_on_the_half_it_was_not_fitted_on(script):
    rng = np.random.default_rng(0)
    labels = torch.arange(4).repeat_interleave(20)
    told = np.eye(4)[labels] + 0.01 * rng.normal(size=(80, 4))
    assert script.linear_probe_accuracy(told, labels) == 1.0
    # Features that name the image, not the class: the fitting half can be learned, nothing of the other.
    assert script.linear_probe_accuracy(np.eye(80), labels) <= 0.5


def test_training_twice_gives_the_same_weights_and_all_metadata(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "ROUNDS", 1)
    monkeypatch.setattr(script, "ROUND_PER_KIND", 2)
    monkeypatch.setattr(script, "measure", lambda probe, seed: OrderedDict(unseen=0.5))
    for name in ("a", "b"):
        script.main(["--out", str(tmp_path / f"{name}.safetensors"), "--seed", "3", "--threads", "1"])
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a | b)
    assert len(list(tmp_path.iterdir())) == 2  # nothing temporary is left
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        with safe_open(tiny_weights_path(), "pt") as shipped_file:
            assert set(file.metadata()) == set(shipped_file.metadata())
        assert file.metadata()["seed"] == "3"
    assert "0.500  unseen" in capsys.readouterr().out
