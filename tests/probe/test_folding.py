import copy
import dataclasses

import pytest
import torch
from cases import assert_near
from small import small_resnet
from torch import nn

from task2vec_ext import load_probe
from task2vec_ext.data import Batch
from task2vec_ext.fisher.head import Head
from task2vec_ext.fisher.per_sample import per_sample_fisher, sum_fisher
from task2vec_ext.kernels.bias_relu import bias_relu
from task2vec_ext.kernels.native import Runtime
from task2vec_ext.probe import folding
from task2vec_ext.probe.folding import FoldedProbe, fold


def probe_of(module, dtype=torch.float64, **options):
    """A probe in eval mode whose BatchNorms are far from the identity."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for name, low in (("weight", -1.0), ("bias", -1.0), ("running_mean", -1.0), ("running_var", 0.1)):
                value = getattr(norm, name)
                if value is not None:
                    value.data.uniform_(low, 2.0, generator=generator)
    return load_probe(module.to(dtype).eval(), preprocess=None, **options)


class Net(nn.Module):
    """A convolution, what is tested, and a head."""

    def __init__(self, middle, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.middle = middle
        self.fc = nn.Linear(channels, 2)

    def forward(self, x):
        return self.fc(self.middle(self.conv(x)).mean((2, 3)))


def images_of(dtype=torch.float64, samples=3):
    return torch.randn(samples, 3, 17, 17, generator=torch.Generator().manual_seed(1), dtype=dtype)


def both(probe, layers=None):
    """The per-sample Fisher of the probe and of its folded copy."""
    layers = layers or probe.layers()
    images = images_of()
    batch = Batch(torch.arange(3), images, torch.zeros(3, dtype=torch.long))
    weight = torch.randn(5, probe.feature_size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    head = Head(weight, torch.zeros(5, dtype=torch.float64), 0.0, 0.0)
    faster = fold(probe, layers, images[:1])
    return per_sample_fisher(probe, layers, head, batch), per_sample_fisher(faster, layers, head, batch), faster


def names(faster):
    return set(faster.scale) if isinstance(faster, FoldedProbe) else None


def test_the_fisher_is_that_of_the_original_weights():
    probe = probe_of(small_resnet())
    expected, actual, faster = both(probe)
    assert_near(actual, expected, 1e-11)
    convolutions = {name for name, m in probe.module.named_modules() if isinstance(m, nn.Conv2d)}
    assert names(faster) == convolutions
    assert not any(isinstance(m, nn.BatchNorm2d) for m in faster.module.modules())


def test_the_probe_is_untouched_and_nothing_but_convolutions_is_copied():
    probe = probe_of(small_resnet())
    before = copy.deepcopy(probe.module.state_dict())
    modules = dict(probe.module.named_modules())
    _, _, faster = both(probe)
    after = probe.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(dict(probe.module.named_modules())[name] is m for name, m in modules.items())
    assert faster.module.get_submodule("fc") is probe.module.get_submodule("fc")
    assert all(not p.is_contiguous() or p.numel() in p.shape for p in faster.module.conv1.parameters())  # channels-last


def test_a_batchnorm_of_the_embedding_stays():
    probe = probe_of(small_resnet())
    expected, actual, faster = both(probe, probe.layers(include_batchnorm=True))
    assert_near(actual, expected, 1e-11)
    assert names(faster) == set()


@pytest.mark.parametrize(
    ("middle", "folded"),
    [
        (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)), {"conv"}),
        (nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU()), {"conv"}),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), set()),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)), {"middle.0"}),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)), {"middle.0"}),
        (nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), {"conv"}),
    ],
    ids=["in-place", "no-affine", "after-relu", "groups-bias", "padding-mode", "twice"],
)
def test_only_a_batchnorm_right_after_a_convolution_is_folded(middle, folded):
    expected, actual, faster = both(probe_of(Net(middle)))
    assert names(faster) == folded
    assert_near(actual, expected, 1e-11)


class Residual(nn.Module):
    """A convolution whose output the BatchNorm is not alone to read."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class Scaled(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class FusedActivation(nn.BatchNorm2d):
    """As timm's."""

    def forward(self, x):
        return super().forward(x).relu()


class Branching(nn.Module):
    """What torch.fx cannot follow."""

    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


@pytest.mark.parametrize(
    ("middle", "folded"),
    [
        (Residual(), set()),
        (nn.Sequential(Scaled(4, 4, 3), nn.BatchNorm2d(4)), set()),
        (FusedActivation(4), set()),
        (nn.Sequential(nn.BatchNorm2d(4), Branching()), None),
    ],
    ids=["two-readers", "conv-subclass", "norm-subclass", "not-traceable"],
)
def test_what_cannot_be_folded_runs_as_it_is(middle, folded):
    expected, actual, faster = both(probe_of(Net(middle)))
    assert names(faster) == folded
    assert_near(actual, expected, 1e-11)


def test_a_watched_layer_is_not_folded():
    probe = probe_of(Net(nn.BatchNorm2d(4)))
    seen = []
    probe.module.conv.register_forward_hook(lambda *_: seen.append(1))
    assert names(both(probe)[2]) == set()
    assert seen


def test_a_network_that_traces_to_something_else_runs_as_it_is():
    class Fickle(nn.Module):
        calls = 0

        def forward(self, x):
            Fickle.calls += 1  # a side effect that torch.fx sees once
            return x * (1 + Fickle.calls % 2)

    probe = probe_of(Net(nn.Sequential(nn.BatchNorm2d(4), Fickle())))
    assert fold(probe, probe.layers(), images_of()[:1]) is probe


def test_a_folded_probe_is_folded_once():
    probe = probe_of(small_resnet())
    faster = fold(probe, probe.layers(), images_of()[:1])
    assert fold(faster, probe.layers(), images_of()[:1]) is faster


def test_sixteen_bit_weights_stay():
    probe = dataclasses.replace(probe_of(small_resnet(), torch.bfloat16))
    assert names(fold(probe, probe.layers(), images_of(torch.bfloat16)[:1])) == set()


def test_sums_over_a_task_use_the_folded_probe(monkeypatch):
    probe = probe_of(small_resnet())
    layers, images = probe.layers(), images_of()
    head = Head(torch.randn(5, probe.feature_size, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), 0.0, 0.0)
    norms = []
    for norm in (m for m in probe.module.modules() if isinstance(m, nn.BatchNorm2d)):
        monkeypatch.setattr(norm, "forward", lambda x, f=norm.forward: (norms.append(len(x)), f(x))[1])
    sum_fisher(probe, layers, head, [Batch(torch.arange(3), images, torch.zeros(3, dtype=torch.long))])
    assert set(norms) <= {1}  # the one image both networks are compared on


# ---- bias, sum and ReLU in one module -------------------------------------------------------------------------------


def fused(module):
    """How often `bias_relu` runs in the folded, fused network, whose Fisher is that of the folded one."""
    probe = probe_of(module)
    layers, images = probe.layers(), images_of()
    results = []
    for fuse in (False, True):
        faster = fold(probe, layers, images[:1], fuse=fuse)
        assert isinstance(faster, FoldedProbe)
        weight = torch.ones(2, probe.feature_size, dtype=torch.float64).cumsum(1)
        head = Head(weight, torch.zeros(2, dtype=torch.float64), 0.0, 0.0)
        batch = Batch(torch.arange(3), images, torch.zeros(3, dtype=torch.long))
        results.append(per_sample_fisher(faster, layers, head, batch))
    assert_near(results[1], results[0], 1e-10)
    return sum(type(child).__name__ == "_BiasReLU" for child in faster.module.modules())


class Shortcut(nn.Module):
    """Two convolutions and a sum, written in one of the ways that there are."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.relu, self.add = nn.ReLU(inplace=True), nn.Identity()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1, bias=bias) for bias in (True, False))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.norm(self.second(self.relu(self.first(x))))
        return self.way(self, x, y)


def in_place(net, x, y):
    y += x
    return net.relu(y)


@pytest.mark.parametrize(
    ("way", "count"),
    [
        (in_place, 2),
        (lambda net, x, y: torch.relu(x + y), 2),
        (lambda net, x, y: torch.add(y, x).relu_(), 2),
        (lambda net, x, y: nn.functional.relu(y.add_(x), inplace=True), 2),
        (lambda net, x, y: torch.add(y, x, alpha=2).relu(), 1),
        (lambda net, x, y: (y + 1).relu(), 1),
        (lambda net, x, y: (y + y).relu(), 1),
        (lambda net, x, y: net.add(y).relu(), 1),  # a module's name, no sum
        (lambda net, x, y: net.relu(y) + y, 1),  # seen twice
        (lambda net, x, y: (z := y + x) + z.relu(), 1),
        (lambda net, x, y: y.tanh(), 1),
    ],
    ids=["iadd", "sum", "torch.add", "add_", "alpha", "number", "itself", "module", "twice", "sum-twice", "tanh"],
)
def test_what_follows_a_convolution_is_fused_where_nothing_else_sees_it(way, count):
    assert fused(Net(Shortcut(way))) == count


def test_a_convolution_that_runs_twice_keeps_its_bias():
    probe = probe_of(Net(Shortcut(lambda net, x, y: net.relu(net.first(y)))))
    images = images_of()
    faster = fold(probe, probe.layers(["conv"]), images[:1], fuse=True)
    assert isinstance(faster, FoldedProbe)
    assert_near(faster.features(images), probe.features(images), 1e-12)


def test_a_residual_network_is_fused_but_for_its_shortcuts_and_its_layers_stay():
    module = small_resnet()
    convolutions = sum(isinstance(child, nn.Conv2d) for child in module.modules())
    shortcuts = sum("downsample" in name and isinstance(child, nn.Conv2d) for name, child in module.named_modules())
    assert fused(module) == convolutions - shortcuts


@pytest.mark.simt
def test_the_fisher_of_a_network_fused_by_the_kernel_is_the_same(simt, monkeypatch):
    module = small_resnet(widths=(4, 8, 8, 12))
    probe, images = load_probe(module, preprocess=None), images_of(torch.float32)
    head = Head(torch.ones(2, 12, dtype=torch.float64).cumsum(1), torch.zeros(2, dtype=torch.float64), 0.0, 0.0)
    batch, layers = Batch(torch.arange(3), images, torch.zeros(3, dtype=torch.long)), probe.layers()
    expected = per_sample_fisher(probe, layers, head, batch)
    taken = []

    def by_the_kernel(output, bias, other):
        result = bias_relu(output, bias, other, Runtime(simt, 0, 0, 1, True))
        taken.append(result.data_ptr() == output.data_ptr())
        return result

    monkeypatch.setattr(folding, "bias_relu", by_the_kernel)
    faster = fold(probe, layers, images[:1], fuse=True)
    taken.clear()
    assert_near(per_sample_fisher(faster, layers, head, batch), expected, 1e-5)
    assert len(taken) == 9
    assert all(taken)
