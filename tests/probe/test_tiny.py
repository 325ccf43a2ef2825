import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from task2vec_ext.demo.tasks import TRAINED, UNSEEN
from task2vec_ext.demo.train_probe import linear_probe_accuracy, main, make_images, probe_features
from task2vec_ext.probe.tiny import TINY_MEAN, TINY_NUM_CLASSES, TINY_SIZE, TINY_STD, TinyResNet, tiny_weights_path


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


@pytest.fixture(scope="module")
def metadata():
    with safe_open(tiny_weights_path(), "pt") as file:
        return file.metadata()


def test_shipped_file_is_small_and_finite(shipped):
    assert tiny_weights_path().stat().st_size <= 4_000_000
    for name, tensor in shipped.state_dict().items():
        assert torch.isfinite(tensor).all(), name


def test_shipped_probe_has_the_stated_layout(shipped):
    convs = [m for m in shipped.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 12
    assert sum(conv.out_channels for conv in convs) == 1080
    assert sum(p.numel() for p in shipped.parameters()) <= 1_000_000
    assert any(isinstance(m, nn.ReLU) and m.inplace for m in shipped.modules())
    for module in shipped.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert int(module.num_batches_tracked) > 100  # the statistics are those of training, not 0 and 1


def test_metadata_tells_how_the_weights_came_about(metadata):
    assert json.loads(metadata["trained_classes"]) == [k for kinds in TRAINED.values() for k in kinds]
    assert json.loads(metadata["held_out_classes"]) == [k for kinds in UNSEEN.values() for k in kinds]
    assert json.loads(metadata["preprocessing"]) == {
        "size": TINY_SIZE,
        "mean": list(TINY_MEAN),
        "std": list(TINY_STD),
    }
    assert f"--seed {metadata['seed']} " in json.loads(metadata["recipe"])["command"]
    assert set(json.loads(metadata["data"])) == {"handwriting", "photographs", "drawings, textures"}
    figures = json.loads(metadata["accuracies"])
    assert figures["trained kinds, new images"] > 0.85  # measured 0.89
    trained = figures["unseen kinds, linear probe, trained"]
    assert trained > figures["unseen kinds, linear probe, untrained"] + 0.3
    assert trained > figures["unseen kinds, linear probe, pixels"] + 0.3


def test_default_head_has_one_output_a_trained_kind():
    assert sum(map(len, TRAINED.values())) == TINY_NUM_CLASSES == TinyResNet().fc.out_features


def test_shipped_probe_recognises_new_images_of_trained_kinds(shipped):
    kinds = [k for group in TRAINED.values() for k in group]
    images, labels = make_images(kinds, 6, seed=123)
    with torch.no_grad():
        features = torch.from_numpy(probe_features(shipped, images)).float()
        right = shipped.fc(features).argmax(1) == labels
    assert right.double().mean() > 0.75  # 198 images, measured 0.89: six standard errors


def test_shipped_probe_separates_kinds_it_never_saw_better_than_an_untrained_one(shipped):
    torch.manual_seed(0)
    kinds = [k for group in UNSEEN.values() for k in group]
    images, labels = make_images(kinds, 24, seed=321)
    trained, untrained = (
        linear_probe_accuracy(probe_features(probe, images), labels) for probe in (shipped, TinyResNet())
    )
    assert trained > 0.6
    assert trained > untrained + 0.25


def test_linear_probe_accuracy_is_measured_on_the_half_it_was_not_fitted_on():
    rng = np.random.default_rng(0)
    labels = torch.arange(4).repeat_interleave(20)
    told = np.eye(4)[labels] + 0.01 * rng.normal(size=(80, 4))
    assert linear_probe_accuracy(told, labels) == 1.0
    # Features that name the sample, not the class: the fitting half can be learned, nothing of the other.
    assert linear_probe_accuracy(np.eye(80), labels) <= 0.5


def test_features_are_the_input_of_the_head():
    probe = TinyResNet(5, widths=(4, 6, 8, 10)).eval()
    seen = []
    probe.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.randn(2, 3, TINY_SIZE, TINY_SIZE)
    with torch.no_grad():
        logits = probe(x)
        assert torch.equal(seen[0], probe.features(x))
    assert logits.shape == (2, 5)
    assert seen[0].shape == (2, 10)


def test_shortcut_carries_the_input_when_the_block_is_silent():
    block = TinyResNet(widths=(4, 6, 8, 10)).layer1[0].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x.clone()), x)


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"widths": (8, 8)}, {"widths": (8, 8, 0, 8)}])
def test_impossible_layouts_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"TinyResNet: expected .*{name}.* got"):
        TinyResNet(**options)


def test_training_twice_gives_the_same_weights_and_all_metadata(tmp_path, monkeypatch, capsys, metadata):
    from task2vec_ext.demo import train_probe

    monkeypatch.setattr(train_probe, "ROUNDS", 1)
    monkeypatch.setattr(train_probe, "ROUND_PER_KIND", 2)
    monkeypatch.setattr(train_probe, "measure", lambda probe, seed: OrderedDict(unseen=0.5))
    for name in ("a", "b"):
        main(["--out", str(tmp_path / f"{name}.safetensors"), "--seed", "3", "--threads", "1"])
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a | b)
    assert len(list(tmp_path.iterdir())) == 2  # nothing temporary is left
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert set(file.metadata()) == set(metadata)
        assert file.metadata()["seed"] == "3"
    assert "0.500  unseen" in capsys.readouterr().out
