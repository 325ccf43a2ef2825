"""Probes by "timm:NAME"."""

import builtins

import pytest
import torch
from oracles import assert_equals_autograd, randomised

from task2vec_ext import Preprocess, load_probe

NEEDS = "needs the extra timm: pip install '.[timm]'"
MINIATURES = {  # timm's own, for tests: name, head
    "test_resnet": "fc",
    "test_convnext": "head.fc",
    "test_efficientnet": "classifier",
    "test_vit": "head",
}


def test_a_missing_timm_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **options):
        if name == "timm":
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RuntimeError, match=r"expected timm on this machine for the probe 'timm:resnet34'.*pip install"):
        load_probe("timm:resnet34")


@pytest.mark.parametrize("name", MINIATURES)
def test_the_fisher_of_every_layer_equals_autograd(name):
    pytest.importorskip("timm", reason=NEEDS)
    probe = load_probe(f"timm:{name}", weights="random")
    assert (probe.head, probe.name, probe.weights) == (MINIATURES[name], f"timm:{name}", "random")
    side = probe.preprocess.crop
    assert_equals_autograd(load_probe(randomised(probe.module, torch.float64), preprocess=None), 1e-10, side=side)


def test_random_weights_are_the_same_every_time():
    pytest.importorskip("timm", reason=NEEDS)
    first, second = (load_probe("timm:test_vit", weights="random") for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_preprocessing_is_that_of_the_name():
    pytest.importorskip("timm", reason=NEEDS)
    probe = load_probe("timm:resnet18.a1_in1k", weights="random")
    assert probe.preprocess == Preprocess(235, 224, interpolation="bicubic")  # ⌊224 / 0.95⌋


@pytest.mark.parametrize("classes", [1000, 7])
def test_a_checkpoint_fits_by_path(classes, tmp_path):
    timm = pytest.importorskip("timm", reason=NEEDS)
    from safetensors.torch import save_file

    net = timm.create_model("test_resnet", num_classes=classes).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    probe = load_probe("timm:test_resnet", weights=tmp_path / "model.safetensors")
    assert probe.fingerprint == load_probe(net).fingerprint
    assert probe.weights == "model.safetensors"


def test_a_download_without_a_network_names_the_file(monkeypatch):
    timm = pytest.importorskip("timm", reason=NEEDS)

    def no_network(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(
        RuntimeError,
        match=r"timm:resnet18.a1_in1k .*\(no network\). Fetch model.safetensors of .* timm/resnet18.a1_in1k .*'PATH'",
    ):
        load_probe("timm:resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probe": "timm:resnet35"}, "expected a model of timm .* got 'resnet35'; close to it: .*resnet34"),
        ({"probe": "timm:resnet34.a1_in2k"}, "close to it: resnet34.a1_in1k"),
        ({"probe": "timm:resnet34", "weights": 3}, "as 'random' or a path, got 3"),
        ({"probe": "timm:resnet34", "weights": "IMAGENET1K_V1"}, "no such file"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    pytest.importorskip("timm", reason=NEEDS)
    with pytest.raises(ValueError, match=message):
        load_probe(**arguments)


@pytest.mark.parametrize("change", [{"crop_mode": "squash"}, {"interpolation": "lanczos"}, {"input_size": (3, 8, 9)}])
def test_other_preprocessing_is_refused(change):
    config = {
        "input_size": (3, 224, 224),
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "crop_pct": 0.875,
        "crop_mode": "center",
    }
    assert Preprocess.from_timm(config) == Preprocess(256, 224, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(NotImplementedError, match=r"Preprocess.from_timm: supported .*preprocess=Preprocess\(…\)"):
        Preprocess.from_timm(config | change)
