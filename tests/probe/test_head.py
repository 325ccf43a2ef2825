"""Which layer is the head: small networks of every kind of end, and what is said where that is not clear."""

import pytest
import torch
from oracles import assert_equals_autograd, randomised
from small import Blobs
from torch import nn
from torch.nn import functional as F

from task2vec_ext import EmbedSettings, Preprocess, Task2VecWarning, fisher_embed, load_probe


class Net(nn.Module):
    """A trunk of two convolutions, further modules, and an end that is a function of (self, map)."""

    def __init__(self, end, **modules):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, 2), nn.Tanh())
        for name, module in modules.items():
            self.add_module(name, module)
        self.end = end

    def forward(self, x):
        return self.end(self, self.trunk(x))


def mean(x):
    return x.mean((2, 3))


def gate():
    return nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 6), nn.Sigmoid())


def gated(net, x):
    return x * net.gate(mean(x))[..., None, None]


def placed(net, x):
    """With a bias that a small network computes from positions, as SwinV2's."""
    rows = torch.linspace(-1, 1, x.shape[2]).to(x)
    return x + net.position(rows[:, None]).T[None, :, :, None]


def head():
    return nn.Linear(6, 3)


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x * self.scale + 1


FOUND = {  # network, head, layers that are left out
    "linear": (lambda: Net(lambda n, x: n.fc(mean(x)), fc=head()), "fc", ""),
    "softmax": (lambda: Net(lambda n, x: n.fc(mean(x)).log_softmax(1), fc=head()), "fc", ""),
    "temperature": (lambda: Net(lambda n, x: n.t(n.fc(mean(x))), fc=head(), t=Temperature()), "fc", ""),
    "mlp": (lambda: Net(lambda n, x: n.m(mean(x)), m=nn.Sequential(head(), nn.ReLU(), nn.Linear(3, 2))), "m.2", ""),
    "gate-registered-last": (lambda: Net(lambda n, x: n.top(mean(gated(n, x))), top=head(), gate=gate()), "top", ""),
    "unused-named-fc": (lambda: Net(lambda n, x: n.top(mean(x)), top=head(), fc=head()), "top", "fc"),
    "unused-projector": (lambda: Net(lambda n, x: n.top(mean(x)), top=head(), z=gate()), "top", "z.0, z.2"),
    "conv-then-pool": (lambda: Net(lambda n, x: n.c(x).mean((2, 3)), c=nn.Conv2d(6, 3, 1)), "c", ""),
    "pool-then-conv": (
        lambda: Net(lambda n, x: n.c(F.adaptive_avg_pool2d(x, 1)).flatten(1), c=nn.Conv2d(6, 3, 1)),
        "c",
        "",
    ),
    "logits-in-a-dictionary": (
        lambda: Net(lambda n, x: {"hidden": x, "logits": n.fc(mean(x))}, fc=head()),
        "fc",
        "",
    ),
    "distilled": (
        lambda: Net(lambda n, x: (n.head(mean(x)) + n.head_dist(x[:, :, 0, 0])) / 2, head=head(), head_dist=head()),
        "head",
        "head_dist",
    ),
    "auxiliary-output": (
        lambda: Net(lambda n, x: (n.fc(mean(x)), n.aux(mean(x))), fc=head(), aux=head()),
        "fc",
        "aux",
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_head_is_the_layer_whose_output_is_the_networks(case):
    build, name, left_out = FOUND[case]
    probe = load_probe(randomised(build(), torch.float64), preprocess=None)
    assert probe.head == name
    if left_out:
        with pytest.warns(Task2VecWarning, match=rf"leaves out {left_out}: no gradient"):
            layers = probe.layers()
    else:
        layers = probe.layers()
    assert_equals_autograd(probe, 1e-10, layers=layers)


def test_a_layer_that_sees_positions_is_no_head():
    net = Net(lambda n, x: n.top(mean(placed(n, x))), top=head(), position=nn.Linear(1, 6)).eval()
    assert load_probe(net, preprocess=None).head == "top"
    net = Net(lambda n, x: mean(placed(n, x)), position=nn.Linear(1, 6)).eval()
    with pytest.raises(ValueError, match=r"that of Net is not\. Choose with load_probe: head='features'"):
        load_probe(net, preprocess=None)


ASKED = {  # network, what can be chosen
    "no-head": (lambda: Net(lambda n, x: mean(x)), "head='features' to take its output [N, 6] as the features"),
    "identity": (lambda: Net(lambda n, x: n.fc(mean(x)), fc=nn.Identity()), "head='features'"),
    "gate": (lambda: Net(lambda n, x: mean(gated(n, x)), gate=gate()), "head='features'"),
    "mlp-with-residual": (
        lambda: Net(lambda n, x: mean(x) + n.m(mean(x)), m=gate()),
        "head='features'",
    ),
    "ends-in-activation": (lambda: Net(lambda n, x: n.fc6(mean(x)).relu(), fc6=head()), "head='fc6'"),
    "normalised": (lambda: Net(lambda n, x: F.normalize(n.embed(mean(x))), embed=head()), "head='embed'"),
    "projector": (lambda: Net(lambda n, x: n.proj(mean(x)), proj=head()), "head='proj'"),
    "two-outputs": (lambda: Net(lambda n, x: (n.age(mean(x)), n.sex(mean(x))), age=head(), sex=head()), "head='age'"),
    "ensemble": (lambda: Net(lambda n, x: n.a(mean(x)) + n.b(mean(x)), a=head(), b=head()), "head='a'"),
    "conv-activation-pool": (lambda: Net(lambda n, x: mean(n.c(x).relu()), c=nn.Conv2d(6, 3, 1)), "head='c'"),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_network_with_another_end_is_asked_about_and_the_advice_works(case):
    build, choice = ASKED[case]
    net = randomised(build(), torch.float64)
    with pytest.raises(ValueError) as caught:
        load_probe(net, preprocess=None)
    message = str(caught.value)
    assert choice in message
    assert "'gate" not in message  # nor any layer that only some of the output passes
    for name in [part.split("'")[0] for part in message.split("head='")[1:]]:
        if name == "features" and "wrapping" in message:
            continue
        probe = load_probe(net, preprocess=None, head=name)
        others = case in ("two-outputs", "ensemble") and name != "features"
        if others:
            with pytest.warns(Task2VecWarning, match="leaves out"):
                layers = probe.layers()
        else:
            layers = probe.layers()
        assert_equals_autograd(probe, 1e-10, layers=layers)


def test_a_map_without_pooling_is_to_be_wrapped():
    net = Net(lambda n, x: n.c(x), c=nn.Conv2d(6, 3, 1)).eval()
    with pytest.raises(ValueError, match=r"after wrapping it to return one vector \[N, D\], got \[N, 3, 55, 55\]"):
        load_probe(net, preprocess=None)


def test_features_include_every_layer_and_differ_from_a_head_inside():
    net = Net(lambda n, x: n.fc(mean(x)), fc=head()).eval()
    whole, refitted = (load_probe(net, preprocess=None, head=name) for name in ("features", "fc"))
    assert [layer.name for layer in whole.layers()] == ["trunk.0", "trunk.2", "fc"]
    assert (whole.feature_size, refitted.feature_size) == (3, 6)
    assert whole.fingerprint != refitted.fingerprint
    embedding = fisher_embed(Blobs(side=32), whole, progress=False)
    assert embedding.probe.head == "features"
    assert len(embedding) == 4 + 6 + 3


@pytest.mark.parametrize("name", ["gate.0", "gate.2"])
def test_a_gate_that_is_named_as_the_head_is_refused(name):
    net = Net(lambda n, x: n.fc(mean(gated(n, x))), fc=head(), gate=gate()).eval()
    with pytest.raises(ValueError, match=rf"around '{name}', too .*layers that can be the head: 'fc'"):
        fisher_embed(Blobs(side=32), load_probe(net, preprocess=None, head=name), progress=False)


def test_a_head_inside_the_network_leaves_out_what_follows():
    net = Net(lambda n, x: n.m(mean(x)), m=nn.Sequential(head(), nn.ReLU(), nn.Linear(3, 2))).eval()
    probe = load_probe(net, preprocess=None, head="m.0")
    with pytest.warns(Task2VecWarning, match=r"leaves out m\.2: no gradient"):
        assert [layer.name for layer in probe.layers()] == ["trunk.0", "trunk.2"]


def test_a_network_without_gradients_is_refused():
    net = Net(lambda n, x: n.fc(mean(x).detach()), fc=head()).eval()
    with pytest.raises(ValueError, match=r"do not depend on the images.*torch.no_grad\(\) or detaches"):
        load_probe(net, preprocess=None)
    with pytest.raises(ValueError, match=r"reach no image.*torch.no_grad\(\) or detaches"):
        load_probe(net, preprocess=None, head="fc").layers()


class FixedSize(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.conv, self.fc, self.side = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 2), side

    def forward(self, x):
        assert x.shape[-1] == self.side, "Wrong image size!"
        return self.fc(mean(self.conv(x)))


def test_images_of_a_size_the_network_does_not_take_are_refused_before_work():
    probe = load_probe(FixedSize(32).eval(), preprocess=Preprocess(64, 64))
    with pytest.raises(ValueError, match=r"FixedSize to take images \[N, 3, 64, 64\].*Wrong image.*image_size=32"):
        EmbedSettings().check(probe)
    assert load_probe(FixedSize(32).eval(), preprocess=Preprocess(64, 64), image_size=32).layers()[-1].stop == 4


def test_a_network_that_takes_no_usual_size_is_asked_about():
    with pytest.raises(ValueError, match=r"failed with square images of every usual size \(AssertionError: Wrong"):
        load_probe(FixedSize(17).eval())
    assert load_probe(FixedSize(17).eval(), head="fc", preprocess=Preprocess(17, 17)).layers()[-1].stop == 4


def test_a_trial_leaves_the_network_and_the_generators_as_they_were():
    net = Net(lambda n, x: n.fc(mean(x)), fc=head()).eval()
    net.trunk[0].weight.requires_grad_(False)
    before, hooks = torch.random.get_rng_state(), [len(m._forward_hooks) for m in net.modules()]
    load_probe(net).layers()
    assert not net.trunk[0].weight.requires_grad
    assert net.fc.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert hooks == [len(m._forward_hooks) for m in net.modules()]
    assert torch.equal(before, torch.random.get_rng_state())
