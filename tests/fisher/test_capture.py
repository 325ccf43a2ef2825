"""What reads a layer's weight: seen whoever calls it, equal to autograd, or refused by name."""

import pytest
import torch
from cases import assert_near
from oracles import assert_equals_autograd, randomised
from small import small_probe, small_resnet
from torch import nn
from torch.nn import functional as F

from task2vec_ext import Task2VecWarning
from task2vec_ext.fisher.per_sample import check_per_sample
from task2vec_ext.probe.attention import self_attention


class Net(nn.Module):
    """Patches of an image as a sequence ``[B, 16, 8]``, what is tested, a head on the mean."""

    def __init__(self, middle, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.middle = middle
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        return self.fc(self.middle(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def probe_of(middle, width=8):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_probe(randomised(Net(middle, width), torch.float64))


def check(probe, layers=None):
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_per_sample(probe, probe.layers() if layers is None else layers, images)


class Attends(nn.Module):
    """One attention, called as told."""

    def __init__(self, call, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **{"batch_first": True, **options})
        self.call = call

    def forward(self, x):
        return self.call(self.attention, x)


ATTENTIONS = {
    "without-weights": lambda attention, x: attention(x, x, x, need_weights=False)[0],
    "with-weights": lambda attention, x: attention(x, x, x)[0],
}


@pytest.mark.parametrize("call", ["without-weights", "with-weights"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_attentions_packed_projection_equals_autograd(call, bias):
    probe = probe_of(Attends(ATTENTIONS[call], bias=bias))
    names = [(layer.name, layer.kind, layer.stop - layer.start, layer.fan_in) for layer in probe.layers()]
    assert names[1:] == [("middle.attention.in_proj", "linear", 24, 8), ("middle.attention.out_proj", "linear", 8, 8)]
    assert_equals_autograd(probe, 1e-10)


def test_attention_over_sequences_first_equals_autograd():
    attends = Attends(lambda attention, x: attention(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), batch_first=False)
    assert_equals_autograd(probe_of(attends), 1e-10)


def test_the_fast_path_of_an_encoder_layer_hides_no_weight():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False
    )
    probe = probe_of(encoder)
    assert [layer.name.removeprefix("middle.layers.0.") for layer in probe.layers()][1:5] == [
        "self_attn.in_proj",
        "self_attn.out_proj",
        "linear1",
        "linear2",
    ]
    assert_equals_autograd(probe, 1e-10)


@pytest.mark.parametrize("average", [True, False], ids=["average", "per-head"])
@pytest.mark.parametrize("weights", [True, False], ids=["weights", "no-weights"])
def test_self_attention_equals_torchs(weights, average, monkeypatch):
    attention = nn.MultiheadAttention(12, 3, dropout=0.5).double().eval()
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    expected = attention(x, x, x, need_weights=weights, average_attn_weights=average)
    monkeypatch.setattr(F, "multi_head_attention_forward", lambda *args, **kw: self_attention("", *args, **kw))
    actual = attention(x, x, x, need_weights=weights, average_attn_weights=average)
    assert_near(actual[0], expected[0], 1e-14)
    assert (actual[1] is None) == (expected[1] is None)
    if weights:
        assert_near(actual[1], expected[1], 1e-14)


@pytest.mark.parametrize(
    ("call", "options", "what"),
    [
        (lambda a, x: a(x, x, x, attn_mask=torch.zeros(16, 16).to(x))[0], {}, "attn_mask"),
        (lambda a, x: a(x, x, x, key_padding_mask=torch.zeros(x.shape[:2]).bool())[0], {}, "key_padding_mask"),
        (lambda a, x: a(x + 1, x, x)[0], {}, "a query that is not key and value"),
        (lambda a, x: a(x, x, x)[0], {"add_bias_kv": True}, "bias_k"),
        (lambda a, x: a(x, x, x)[0], {"add_zero_attn": True}, "add_zero_attn"),
        (lambda a, x: (lambda y: a(y, y, y)[0])(x[0]).expand_as(x), {}, "an input without a batch"),
    ],
    ids=["mask", "padding", "cross", "bias-kv", "zero", "unbatched"],
)
def test_other_attention_is_refused_by_name_and_may_be_left_out(call, options, what):
    probe = probe_of(Attends(call, **options))
    with pytest.raises(
        NotImplementedError, match=rf"attention of 'middle.attention.\w+' .*; got {what}\. Pass layers="
    ):
        check(probe)
    if "without a batch" not in what:
        check(probe, probe.layers(["stem"]))


def test_attention_of_other_widths_is_told_of():
    attends = Attends(lambda a, x: a(x, x[..., :6], x[..., :4])[0], kdim=6, vdim=4)
    with pytest.warns(Task2VecWarning, match=r"no entries for middle.attention \(MultiheadAttention\)"):
        layers = probe_of(attends).layers()
    with pytest.raises(NotImplementedError, match="got use_separate_proj_weight, a query that is not key"):
        check(probe_of(attends), layers)


class Does(nn.Module):
    """Some layers, and a function of them."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.call(self, x)


class Scaled(nn.Linear):
    """Does more than its parent."""

    def forward(self, x):
        return 2 * super().forward(x).tanh()


class Functional(nn.Linear):
    """Handed to others, never called."""

    def forward(self, x):
        raise AssertionError


WINDOWS = lambda x: x.reshape(len(x) * 4, 4, 8)  # noqa: E731


@pytest.mark.parametrize(
    "middle",
    [
        Scaled(8, 8),
        nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 8)),
        Does(lambda self, x: F.linear(x, self.a.weight), a=Functional(8, 8)),
        Does(lambda self, x: F.linear(input=x, bias=self.a.bias, weight=self.a.weight), a=Functional(8, 8)),
        Does(lambda self, x: self.a(WINDOWS(x)).tanh().reshape(len(x), 16, 8), a=nn.Linear(8, 8)),
        Does(lambda self, x: self.a(x.reshape(len(x), 2, 8, 8)).flatten(1, 2), a=nn.Linear(8, 8)),
        Does(lambda self, x: self.a(x.transpose(1, 2)).transpose(1, 2), a=nn.Linear(16, 5)),
        Does(lambda self, x: self.a(x) + self.a.weight.shape[0], a=nn.Linear(8, 8)),
    ],
    ids=["subclass", "mlp", "functional", "keywords", "windows", "grid", "over-positions", "shape-read"],
)
def test_a_weight_is_seen_whoever_uses_it(middle):
    assert_equals_autograd(probe_of(middle), 1e-10)


class FusedActivation(nn.BatchNorm2d):
    """As timm's."""

    def forward(self, x):
        return super().forward(x).sin()


def test_a_batchnorm_that_does_more_equals_autograd():
    net = small_resnet().double()
    net.bn1.__class__ = net.layer2[0].bn2.__class__ = FusedActivation
    probe = small_probe(net)
    assert_equals_autograd(probe, 1e-10, layers=probe.layers(include_batchnorm=True))


def test_a_linear_layer_over_patches_may_come_first():
    patches = Does(
        lambda self, x: self.fc(self.patch(F.unfold(x, 8, stride=8).transpose(1, 2)).relu().mean(1)),
        patch=nn.Linear(192, 8),
        fc=nn.Linear(8, 3),
    )
    assert_equals_autograd(small_probe(randomised(patches, torch.float64)), 1e-10)


def tied():
    a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    b.weight = a.weight
    return Does(lambda self, x: self.b(self.a(x).tanh()), a=a, b=b)


@pytest.mark.parametrize(
    ("middle", "only", "message"),
    [
        (tied(), ["middle.a"], "layer 'middle.a' ran twice in one forward pass, or another layer shares its weight"),
        (Does(lambda self, x: self.a(self.a(x).tanh()), a=nn.Linear(8, 8)), None, "layer 'middle.a' ran twice"),
        (Does(lambda self, x: self.a(x) @ self.a.weight, a=nn.Linear(8, 8)), None, "'middle.a' .* got it in matmul"),
        (Does(lambda self, x: F.linear(x, F.normalize(self.a.weight)), a=nn.Linear(8, 8)), None, "got it in normalize"),
        (
            Does(
                lambda self, x: (w := torch.zeros(8, 8).to(x)).__setitem__(..., self.a.weight) or x @ w,
                a=nn.Linear(8, 8),
            ),
            None,
            "got it in __setitem__",
        ),
        (Does(lambda self, x: x * torch.stack([self.a.weight] * 2).mean(), a=nn.Linear(8, 8)), None, "got it in stack"),
        (
            Does(lambda self, x: self.a(x.transpose(0, 1)).transpose(0, 1), a=nn.Linear(8, 8)),
            None,
            "fisher_embed: expected images that stay apart .* middle.a one image's features depend on another's",
        ),
        (
            Does(lambda self, x: x + self.a(torch.ones(1, 8).to(x)), a=nn.Linear(8, 8)),
            None,
            r"input of layer 'middle.a' to hold the batch's 2 images along its first axis, got shape \[1, 8\]",
        ),
        (
            Does(lambda self, x: self.a(x.reshape(-1, 8, 4, 2)).reshape(x.shape), a=nn.Conv2d(8, 8, 1)),
            None,
            r"'middle.a' to hold the batch's 2 images along its first axis, got shape \[4, 8, 4, 2\]",
        ),
    ],
    ids=[
        "tied",
        "reused",
        "matmul",
        "normalised",
        "copied",
        "in-a-list",
        "sequence-first",
        "no-image",
        "conv-over-parts",
    ],
)
def test_what_has_no_per_sample_gradient_is_refused_by_name(middle, only, message):
    probe = probe_of(middle)
    with pytest.raises(NotImplementedError, match=message):
        check(probe, probe.layers(only))


@pytest.mark.parametrize(
    "wrap",
    [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm],
    ids=["weight_norm", "spectral_norm", "spectral_norm-hook"],
)
def test_a_computed_weight_is_refused_by_name_and_right_once_it_is_a_parameter(wrap):
    probe = probe_of(wrap(nn.Linear(8, 8)))
    with pytest.raises(NotImplementedError, match=r"weight of 'middle' as a parameter of its own.*remove_"):
        probe.layers()
    assert [layer.name for layer in probe.layers(["stem"])] == ["stem"]
    if nn.utils.parametrize.is_parametrized(probe.module.middle):
        nn.utils.parametrize.remove_parametrizations(probe.module.middle, "weight")
    else:
        nn.utils.remove_spectral_norm(probe.module.middle)
    assert_equals_autograd(probe, 1e-10)


def test_the_images_are_told_apart_when_the_positions_are_as_many():
    sequence_first = Does(lambda self, x: self.a(x[:, :2].transpose(0, 1)).transpose(0, 1), a=nn.Linear(8, 8))
    with pytest.raises(NotImplementedError, match=r"middle.a one image's features depend on another's"):
        check(probe_of(sequence_first))
