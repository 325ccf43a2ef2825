import re
import traceback
from pathlib import Path

import pytest
import torch
from small import small_resnet
from torch import nn
from torchvision.models import (
    DenseNet121_Weights,
    ResNet18_Weights,
    ResNet34_Weights,
    VisionTransformer,
    densenet121,
    resnet18,
)

from task2vec_ext import Preprocess, load_probe
from task2vec_ext.probe.feed import choose_device
from task2vec_ext.probe.weights import TORCHVISION_PROBES


def test_every_named_family_builds():
    from torchvision.models import list_models

    assert set(TORCHVISION_PROBES) <= set(list_models())
    probe = load_probe("resnext50_32x4d", weights="random")
    assert probe.feature_size == 2048
    assert not any(module.training for module in probe.module.modules())


def test_the_preprocessing_of_every_named_weight_is_known():
    from torchvision.models import get_model_weights

    for name in TORCHVISION_PROBES:
        for weights in get_model_weights(name):
            assert Preprocess.from_torchvision(weights.transforms()).crop == weights.transforms().crop_size[0]


def test_random_weights_are_the_same_every_time_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, second = (load_probe("resnet18", weights="random") for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_tiny_probe_needs_no_download():
    probe = load_probe("tiny")
    assert (probe.name, probe.weights, probe.feature_size) == ("tiny", "offline", 192)
    assert probe.fingerprint == load_probe("tiny", weights="offline").fingerprint
    assert probe.fingerprint != load_probe("tiny", weights="random").fingerprint


def test_offline_weights_fit_the_tiny_probe_alone():
    with pytest.raises(ValueError, match="fit the probe 'tiny', not 'resnet34'"):
        load_probe("resnet34", weights="offline")


def test_a_download_without_a_network_names_the_file_and_where_to_put_it(monkeypatch, tmp_path):
    from urllib.error import URLError

    def no_network(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=rf"(?s)resnet34.*IMAGENET1K_V1.*put it at {tmp_path}.*resnet34-\w+\.pth.*weights='PATH'"
    ) as caught:
        load_probe()
    assert "".join(traceback.format_exception(caught.value)).count("Traceback") == 1


def test_weights_already_on_the_machine_are_loaded_without_a_network(monkeypatch, tmp_path):
    enum = ResNet18_Weights.IMAGENET1K_V1
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    net = resnet18()
    torch.save(net.state_dict(), folder / Path(enum.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    probe = load_probe("resnet18", weights=enum)
    assert torch.equal(probe.module.conv1.weight, net.conv1.weight)
    assert probe.preprocess == Preprocess(256, 224)
    assert load_probe("resnet18", weights="DEFAULT").fingerprint == probe.fingerprint


def old_names(state):
    """Torchvision's DenseNet files are older than its code, and than BatchNorm's counters."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("how", ["by-name", "by-path"])
def test_old_names_in_torchvisions_files_are_known(how, monkeypatch, tmp_path):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / Path(DenseNet121_Weights.IMAGENET1K_V1.url).name
    net = densenet121().eval()
    torch.save(old_names(net.state_dict()), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    probe = load_probe("densenet121", weights=None if how == "by-name" else file)
    assert probe.fingerprint == load_probe(net).fingerprint
    assert (probe.head, probe.feature_size) == ("classifier", 1024)


def test_old_names_of_a_vits_mlp_are_known(tmp_path):
    net = VisionTransformer(8, 4, 1, 2, 8, 12, num_classes=3)
    old = {
        re.sub(r"mlp\.([03])", lambda m: f"mlp.linear_{1 + int(m[1]) // 3}", k): v for k, v in net.state_dict().items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.weight" in old
    torch.save(old, tmp_path / "vit.pth")
    other = load_probe(VisionTransformer(8, 4, 1, 2, 8, 12, num_classes=5).eval(), weights=tmp_path / "vit.pth")
    assert other.fingerprint == load_probe(net.eval()).fingerprint


@pytest.mark.parametrize(
    ("name", "head", "size", "filters"),
    [
        ("vgg11", "classifier.6", 4096, 2752 + 2 * 4096),
        ("densenet121", "classifier", 1024, 10240),
        ("convnext_tiny", "classifier.2", 768, 41184),
        ("swin_t", "head", 768, 41184),
    ],
)
def test_a_network_of_every_family_builds(name, head, size, filters):
    probe = load_probe(name, weights="random")
    assert (probe.head, probe.feature_size) == (head, size)
    assert probe.layers()[-1].stop == filters


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"probe": "resnet35"}, ValueError, "expected 'tiny', a model of timm .* or one of resnet18"),
        ({"probe": 34}, TypeError, "a name, an nn.Module or a Probe, got int"),
        ({"probe": "resnet18", "weights": "IMAGENET1K_V7"}, ValueError, "IMAGENET1K_V1, DEFAULT, random"),
        ({"probe": "resnet18", "weights": ResNet34_Weights.DEFAULT}, ValueError, "expected weights of resnet18"),
        ({"probe": "resnet18", "weights": "missing.pth"}, ValueError, "found no such file"),
        ({"probe": "resnet18", "weights": 3}, ValueError, "or the path of a checkpoint; got 3"),
        ({"probe": "tiny", "weights": "DEFAULT"}, ValueError, "'offline' or 'random'"),
        (
            {"probe": "tiny", "head": "classifier"},
            ValueError,
            "module named 'classifier' as head, found none; leave head out",
        ),
        ({"probe": "tiny", "head": "layer1"}, TypeError, "an nn.Linear or a 1×1 convolution, got Sequential"),
        (
            {"probe": "tiny", "preprocess": None, "image_size": 32},
            ValueError,
            "either preprocess=None or image_size",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        load_probe(**arguments)


class NoProcessGroup(nn.parallel.DistributedDataParallel):
    """The wrapper without its processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


WRAPPERS = {
    "data-parallel": nn.DataParallel,
    "distributed": NoProcessGroup,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled": torch.compile,
    "averaged-distributed": lambda net: NoProcessGroup(torch.optim.swa_utils.AveragedModel(net)),
    "compiled-data-parallel": lambda net: torch.compile(nn.DataParallel(net)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_are_taken_off(kind):
    bare = load_probe(small_resnet(), preprocess=None)
    probe = load_probe(WRAPPERS[kind](small_resnet()).eval(), preprocess=None)
    assert probe.fingerprint == bare.fingerprint
    assert probe.layers() == bare.layers()


class Around(nn.Module):
    """A wrapper of the user's, which computes something."""

    def __init__(self):
        super().__init__()
        self.module = small_resnet()

    def forward(self, x):
        return self.module(x / 2)


def test_a_module_called_module_stays_inside():
    assert load_probe(Around().eval(), preprocess=None).head == "module.fc"


def on_meta():
    with torch.device("meta"):
        return small_resnet()


def partly_on_meta():
    net = small_resnet()
    net.layer3.to("meta")
    return net


def lazy():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)).eval()


def with_scripted_part():
    net = small_resnet()
    net.layer3 = torch.jit.script(net.layer3)
    return net


@torch.inference_mode()
def in_inference_mode():
    return small_resnet()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (on_meta, ValueError, r"'conv1\.weight' is on the meta device; build the network on the CPU"),
        (partly_on_meta, ValueError, r"'layer3\.\S+' is on the meta device"),
        (lazy, ValueError, r"'3\.weight' has no shape yet .*run one batch"),
        (in_inference_mode, ValueError, r"'conv1\.weight' was made under torch\.inference_mode\(\)"),
        (lambda: torch.jit.script(small_resnet()), TypeError, r"got TorchScript, whose layers .*scripted\.state_dict"),
        (with_scripted_part, TypeError, r"got TorchScript in 'layer3"),
    ],
    ids=["meta", "partly-meta", "lazy", "inference-mode", "jit", "partly-jit"],
)
def test_networks_without_usable_weights_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        load_probe(build())
    with pytest.raises(error, match=message):
        load_probe(build(), head="fc")


@pytest.mark.parametrize("device", ["mps", "xpu", "cuda:99", "nonsense"])
def test_a_device_that_is_not_here_is_refused_in_words(device):
    with pytest.raises(RuntimeError, match=rf"device: expected .* got '{device}'; pass one of 'cpu'") as caught:
        choose_device(small_resnet(), device, owned=False)
    assert "aten" not in str(caught.value)


def test_downloads_are_checked_against_their_hash(monkeypatch):
    seen = {}

    def get_state_dict(self, **options):
        seen.update(options)
        return resnet18().state_dict()

    monkeypatch.setattr(type(ResNet18_Weights.IMAGENET1K_V1), "get_state_dict", get_state_dict)
    load_probe("resnet18")
    assert seen["check_hash"] is True
