import pytest
import torch
from small import small_probe, small_resnet
from torch import nn
from torchvision.models import (
    VisionTransformer,
    resnet18,
)

from task2vec_ext import Preprocess, Task2VecWarning, load_probe


@pytest.mark.parametrize(
    ("name", "convs", "with_batchnorm"),
    [("resnet18", 4800, 9600), ("resnet34", 8512, 17024), ("resnet50", 26560, 53120)],
)
def test_embedding_lengths_are_the_papers(name, convs, with_batchnorm):
    probe = load_probe(name, weights="random")
    assert probe.layers()[-1].stop == convs
    assert probe.layers(include_batchnorm=True)[-1].stop == with_batchnorm


def test_fingerprint_sees_weights_statistics_and_architecture_but_not_the_head():
    base = small_probe().fingerprint
    assert small_probe(small_resnet()).fingerprint == base
    assert small_probe(small_resnet(seed=1)).fingerprint != base
    head = small_resnet()
    nn.init.zeros_(head.fc.weight)
    assert small_probe(head).fingerprint == base
    statistics = small_resnet()
    statistics.bn1.running_mean += 1e-3
    assert small_probe(statistics).fingerprint != base
    counter = small_resnet()
    counter.bn1.num_batches_tracked += 1
    assert small_probe(counter).fingerprint == base
    activation = small_resnet()
    activation.relu = nn.LeakyReLU().eval()
    assert small_probe(activation).fingerprint != base


def test_fingerprint_sees_how_many_heads_attention_has():
    nets = [VisionTransformer(8, 4, 1, heads, 8, 12) for heads in (2, 2, 4)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    first, same, other = (load_probe(net.eval()).fingerprint for net in nets)
    assert first == same != other


def test_features_are_the_heads_input():
    net = small_resnet()
    images = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(small_probe(net).features(images), net.features(images))


@pytest.mark.parametrize(
    "kind", ["safetensors", "pth", "wrapped", "data-parallel", "headless", "half", "other-classes"]
)
def test_checkpoints_of_every_kind_are_loaded(kind, tmp_path):
    from safetensors.torch import save_file

    net = resnet18(num_classes=7 if kind == "other-classes" else 1000).eval()
    state = net.state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "headless":
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    if kind == "half":
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        net.load_state_dict(state)
    if kind == "data-parallel":
        state = {"module." + key: value for key, value in state.items()}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "wrapped" else state, path)
    probe = load_probe("resnet18", weights=path, image_size=112)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(probe.features(images), load_probe(net).features(images))
    assert probe.weights == path.name
    assert probe.preprocess == Preprocess(128, 112)


def test_a_checkpoint_of_another_architecture_says_what_differs(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(resnet18().state_dict(), path)
    with pytest.raises(ValueError, match=r"fits resnet34 with .*missing: layer1.2.conv1.weight.*another architecture"):
        load_probe("resnet34", weights=path)


def test_a_checkpoint_with_nan_is_refused(tmp_path):
    state = resnet18().state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"NaN or infinity in layer1.0.conv1.weight"):
        load_probe("resnet18", weights=tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04garbage"], ids=["empty", "text", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_checkpoint_is_refused(content, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="could not be read"):
        load_probe("resnet18", weights=path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save(resnet18(), tmp_path / "module.pth")  # a pickled module, not a state_dict
    with pytest.raises(ValueError, match=r"could not be read.*state_dict"):
        load_probe("resnet18", weights=tmp_path / "module.pth")


def test_a_module_in_train_mode_is_refused():
    with pytest.raises(ValueError, match=r"call module.eval\(\) first"):
        load_probe(resnet18())


def test_unknown_layers_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"got 'layer9'; they are: conv1, layer1.0.conv1"):
        small_probe().layers(["layer1", "layer9"])


def test_layers_that_share_a_weight_are_refused_by_name():
    net = small_resnet()
    net.layer1[0].conv2.weight = net.layer1[0].conv1.weight
    with pytest.raises(NotImplementedError, match=r"'layer1.0.conv1' and 'layer1.0.conv2' share one weight"):
        small_probe(net).layers()


def test_prior_is_the_scale_over_the_layers_mean_squared_weight():
    probe = small_probe()
    layers = probe.layers()
    prior = probe.prior(layers, 2e-7)
    expected = 2e-7 / probe.module.conv1.weight.double().square().mean()
    torch.testing.assert_close(prior[:4], expected.detach().expand(4))
    assert prior.dtype == torch.float64


def test_batchnorm_without_running_statistics_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="running statistics, got none in '1'"):
        load_probe(net.eval(), head="3")


def test_a_prefix_ends_at_a_dot():
    net = nn.Sequential()
    for name in ("layer1", "layer10", "fc_extra"):
        net.add_module(name, nn.Sequential(nn.Conv2d(3, 3, 1)))
    net.add_module("fc", nn.Linear(3, 2))
    probe = small_probe(net.eval())
    assert [layer.name for layer in probe.layers(["layer1"])] == ["layer1.0"]
    assert [layer.name for layer in probe.layers()] == ["layer1.0", "layer10.0", "fc_extra.0"]


def test_weights_that_have_no_entries_are_told_of():
    net = nn.Sequential(nn.ConvTranspose2d(3, 3, 2), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).eval()
    probe = small_probe(net, "3")
    with pytest.warns(Task2VecWarning, match=r"no entries for 0 \(ConvTranspose2d\)"):
        assert len(probe.layers()) == 1
    assert len(probe.layers(["1"])) == 1  # asked for by name: no warning, which would be an error here


def test_a_checkpoint_of_a_compiled_module_fits(tmp_path):
    net = resnet18()
    torch.save(torch.compile(net).state_dict(), tmp_path / "weights.pth")
    assert load_probe("resnet18", weights=tmp_path / "weights.pth").fingerprint == load_probe(net.eval()).fingerprint


def test_a_pickle_is_not_run(tmp_path):
    import os
    import pickle

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"conv1.weight": Payload()}))
    with pytest.raises(ValueError, match="could not be read"):
        load_probe("resnet18", weights=tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()
