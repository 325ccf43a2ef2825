import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from task2vec_ext.demo.studio import TRAINED, UNSEEN
from task2vec_ext.probe.tiny import TINY_MEAN, TINY_NUM_CLASSES, TINY_SIZE, TINY_STD, TinyResNet, tiny_weights_path


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
