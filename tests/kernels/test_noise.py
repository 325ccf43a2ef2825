"""Noise on activations and weights: both operators against autograd of the reference."""

import math

import numpy as np
import pytest
import torch
from cases import CASES, Case
from torch.autograd import forward_ad
from torch.nn import functional as F

from task2vec_ext.kernels import noise_kernels, reference
from task2vec_ext.kernels.geometry import conv_geometry
from task2vec_ext.kernels.native import Runtime
from task2vec_ext.kernels.noise import local_noise, weight_noise
from task2vec_ext.kernels.noise_kernels import patch_norm

KEY = {"seed": 2**40 + 5, "layer": 3, "step": 2}
WIDE = [  # more filters than a batch of blocks, than one part of a GPU's block; more locations than a tile
    Case("many-filters", 3, 300, (4, 4), (3, 3), options={"padding": 1}),
    Case("many-locations", 2, 5, (13, 14), (3, 3), options={"padding": 1}),
    Case("depthwise-wide", 140, 140, (9, 9), (3, 3), options={"padding": 1, "groups": 140}),
]
NUMERIC = [case for case in CASES + WIDE if not isinstance(case.arguments()["padding"], str)]
every_case = pytest.mark.parametrize("case", NUMERIC, ids=lambda case: case.name)
every_layout = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["channels-first", "channels-last"]
)


def tensors(case, dtype=torch.float64, layout=torch.contiguous_format):
    """Return (output, input, log-variance), leaves that want gradients."""
    x, output = case.tensors(dtype)
    log_variance = torch.linspace(-3, 0, case.filters, dtype=dtype)
    return [
        t.to(memory_format=layout).requires_grad_() if t.dim() == 4 else t.requires_grad_()
        for t in (output, x, log_variance)
    ]


def with_gradients(function, leaves):
    """Return the result and the gradients of a fixed projection of it."""
    out = function(*leaves)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out)
    return out, *torch.autograd.grad((out * direction).sum(), leaves)


def assert_all_near(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).detach().abs().max() <= tolerance * max(float(b.detach().abs().max()), 1e-6)


# ---- local noise ----------------------------------------------------------------------------------------------------


@every_case
@every_layout
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_local_noise_and_its_gradients_equal_the_second_convolution(case, layout, dtype, tolerance):
    arguments = case.arguments()
    leaves = tensors(case, dtype, layout)
    actual = with_gradients(lambda o, x, lv: local_noise(o, x, lv, **arguments, **KEY), leaves)
    assert actual[0].is_contiguous(memory_format=layout)
    e = reference.local_normals(actual[0].shape, *KEY.values())
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = with_gradients(lambda o, x, lv: _without_nan(o, x, lv, arguments, e), wide)
    assert_all_near(actual, expected, tolerance)


def _without_nan(output, input, log_variance, arguments, e):
    """The reference; where a patch is padding alone, its variance 0 has no gradient."""
    noisy = reference.local_noise(output, input, log_variance, **arguments, noise=e)
    assert torch.isfinite(noisy).all()
    ones = torch.ones_like(input[:1, : arguments["weight_shape"][1]])
    options = {key: arguments[key] for key in ("stride", "padding", "dilation")}
    empty = F.conv2d(ones, torch.ones(1, *arguments["weight_shape"][1:], dtype=ones.dtype), None, **options) == 0
    if not empty.any():
        return noisy
    variance = log_variance.exp()[:, None, None, None].expand(*arguments["weight_shape"])
    wide = F.conv2d(input**2 + 0.01, variance, None, groups=arguments["groups"], **options)
    return output + wide.masked_fill(empty, 1).sqrt().masked_fill(empty, 0) * e


@pytest.mark.parametrize(
    "wants", [(True, False, True), (False, False, True), (True, False, False), (False, True, False)]
)
def test_only_the_gradients_that_are_asked_for(wants):
    case = CASES[0]
    leaves = [t.detach().requires_grad_(want) for t, want in zip(tensors(case), wants, strict=True)]
    out = local_noise(*leaves, **case.arguments(), **KEY)
    everything = tensors(case)
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    expected = torch.autograd.grad(local_noise(*everything, **case.arguments(), **KEY).square().sum(), everything)
    for a, b in zip(
        torch.autograd.grad(out.square().sum(), asked),
        [g for g, want in zip(expected, wants, strict=True) if want],
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@every_layout
def test_the_same_bits_for_any_number_of_threads(layout):
    case = Case("threads", 8, 70, (20, 21), (3, 3), samples=3, options={"padding": 1})

    def run():
        return with_gradients(
            lambda *leaves: local_noise(*leaves, **case.arguments(), **KEY), tensors(case, torch.float32, layout)
        )

    first = run()
    torch.set_num_threads(3)
    try:
        for a, b in zip(first, run(), strict=True):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(1)


def test_neither_layout_nor_later_samples_change_a_number():
    case = Case("batch", 3, 10, (6, 5), (3, 3), samples=4, options={"padding": 1})
    output, x, log_variance = (t.detach() for t in tensors(case, torch.float32))
    options = case.arguments() | KEY
    whole = local_noise(output, x, log_variance, **options)
    assert torch.equal(local_noise(output[:2], x[:2], log_variance, **options), whole[:2])
    last = {"memory_format": torch.channels_last}
    assert torch.equal(local_noise(output.contiguous(**last), x, log_variance, **options), whole)
    sliced = torch.stack([output, output], -1)[..., 0]  # neither layout
    assert torch.equal(local_noise(sliced, x, log_variance, **options), whole)


def test_nothing_of_the_outputs_size_is_kept():
    case = Case("memory", 3, 64, (16, 16), (3, 3), options={"padding": 1})
    output, x, log_variance = tensors(case, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        local_noise(output, x, log_variance, **case.arguments(), **KEY)
    assert max(t.numel() for t in kept) < output.numel() / 8


def test_autocast_of_the_callers_narrows_nothing():
    case = CASES[0]
    leaves = [t.detach() for t in tensors(case, torch.float32)]
    expected = local_noise(*leaves, **case.arguments(), **KEY)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(local_noise(*leaves, **case.arguments(), **KEY), expected)


@every_layout
def test_opcheck(layout):
    case = CASES[8]  # in groups
    output, _, log_variance = tensors(case, torch.float32, layout)
    one = torch.rand(2, 1, *output.shape[2:], requires_grad=True)
    each = torch.rand(output.shape).to(memory_format=layout).requires_grad_()
    for norm in (one, each):
        torch.library.opcheck(torch.ops.task2vec_ext.add_noise.default, (output, norm, log_variance, *KEY.values()))
        torch.library.opcheck(
            torch.ops.task2vec_ext.add_noise_backward.default,
            (output.detach(), norm.detach(), log_variance.detach(), *KEY.values(), True),
        )


def test_compile_without_a_graph_break():
    case = CASES[0]
    leaves, options = tensors(case, torch.float32), case.arguments() | KEY
    compiled = torch.compile(lambda *t: local_noise(*t, **options), fullgraph=True, backend="aot_eager")
    expected = with_gradients(lambda *t: local_noise(*t, **options), leaves)
    assert_all_near(with_gradients(compiled, leaves), [t.double() for t in expected], 1e-6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"seed": -1}, ValueError, "expected seed from 0"),
        ({"layer": 2**32 - 1}, ValueError, "expected layer from 0"),
        ({"step": 2**32}, ValueError, "expected step from 0"),
        ({"epsilon": -0.01}, ValueError, "expected epsilon >= 0, got -0.01"),
        ({"epsilon": math.nan}, ValueError, "expected epsilon >= 0"),
        ({"log_variance": torch.zeros(6, dtype=torch.int64)}, TypeError, "floating-point dtype, got torch.int64"),
        (
            {"log_variance": torch.zeros(6, device="meta")},
            ValueError,
            "all tensors on one device, got them on cpu, meta",
        ),
        ({"log_variance": torch.zeros(3)}, ValueError, r"expected log_variance of shape \[6\]"),
        ({"output": torch.zeros(2, 6, 7, 8)}, ValueError, "local_noise: expected output of shape"),
        ({"input": torch.zeros(2, 5, 7, 7, dtype=torch.float64)}, TypeError, "local_noise: expected input and output"),
        (
            {"input": torch.zeros(2, 5, 7, 7).half(), "output": torch.zeros(2, 6, 7, 7).half()},
            TypeError,
            "float32 or float64 tensors on cpu, got torch.float16",
        ),
    ],
)
def test_bad_input(change, error, words):
    good = {"output": torch.zeros(2, 6, 7, 7), "input": torch.zeros(2, 5, 7, 7), "log_variance": torch.zeros(6)}
    with pytest.raises(error, match=words):
        local_noise(**(good | CASES[0].arguments() | KEY | change))


@pytest.mark.parametrize("leaf", [1, 2], ids=["input", "log_variance"])
def test_a_second_derivative_is_refused(leaf):
    leaves = tensors(CASES[0])
    out = local_noise(*leaves, **CASES[0].arguments(), **KEY)
    (gradient,) = torch.autograd.grad(out.square().sum(), leaves[leaf], create_graph=True)
    with pytest.raises(NotImplementedError, match="local_noise: it has first derivatives in reverse mode alone"):
        torch.autograd.grad(gradient.square().sum(), leaves, allow_unused=True)


def test_forward_mode_is_refused():
    leaves = [leaf.detach() for leaf in tensors(CASES[0])]
    with forward_ad.dual_level():
        for number, leaf in enumerate(leaves):
            dual = [*leaves[:number], forward_ad.make_dual(leaf, torch.ones_like(leaf)), *leaves[number + 1 :]]
            with pytest.raises(NotImplementedError, match="local_noise: it has first derivatives"):
                local_noise(*dual, **CASES[0].arguments(), **KEY)


def test_an_expanded_gradient_is_a_dense_ones():
    case = CASES[0]
    gradients = []
    for ones in (torch.ones(()).double().expand, torch.ones):
        leaves = tensors(case)
        out = local_noise(*leaves, **case.arguments(), **KEY)
        gradients.append(torch.autograd.grad(out, leaves, ones(out.shape).double()))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_an_input_changed_later_in_place_is_refused():
    output, leaf, log_variance = tensors(CASES[0])
    x = leaf * 1
    out = local_noise(output, x, log_variance, **CASES[0].arguments(), **KEY)
    out.relu_()  # may be: of the output nothing is kept
    torch.autograd.grad(out.sum(), log_variance, retain_graph=True)
    x.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out.sum(), leaf)


def test_no_samples_give_no_noise_and_gradients_of_zero():
    case = CASES[0]
    output, x, log_variance = tensors(case)
    leaves = [output.detach()[:0].requires_grad_(), x.detach()[:0].requires_grad_(), log_variance]
    out = local_noise(*leaves, **case.arguments(), **KEY)
    assert out.shape == (0, *output.shape[1:])
    assert not torch.autograd.grad(out.sum(), leaves)[2].any()


def test_a_log_variance_of_16_bits_is_rounded_once():
    output, x, log_variance = (leaf.detach().float() for leaf in tensors(CASES[0]))
    narrow = (log_variance - 30).half()
    options = CASES[0].arguments() | KEY
    expected = local_noise(torch.zeros_like(output), x, narrow.float(), **options)
    torch.testing.assert_close(local_noise(torch.zeros_like(output), x, narrow, **options), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@every_layout
def test_norms_of_small_16_bit_inputs_have_finite_gradients(dtype, layout):
    """1/√B is beyond float16 where the input is small: its product with the input is not, nor with 0."""
    x = torch.zeros(1, 2, 3, 3, dtype=dtype).to(memory_format=layout)
    x[0, 0, 1, 1] = 6e-8
    conv = conv_geometry(x, x.new_zeros(1, 4, 3, 3), (4, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    norm = patch_norm(x.requires_grad_(), conv, 0.0)
    (gradient,) = torch.autograd.grad(norm.sum(), x)
    assert float(gradient[0, 0, 1, 1]) == pytest.approx(9, rel=1e-2)  # ∂|x|/∂x in each of the 9 patches
    assert gradient.count_nonzero() == 1


# ---- noise on weights -----------------------------------------------------------------------------------------------

SIZES = [147, 27, 2, 1, 400, 1025]  # the last: more than a batch of blocks
STARTS = torch.tensor([0, *np.cumsum(SIZES)])
WEIGHT_KEY = {"seed": 7, "step": 3}


def flat(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(sum(SIZES), generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return [weight, torch.linspace(-4, 0, len(SIZES), dtype=dtype).requires_grad_()]


def plain_weight_noise(weight, log_variance):
    sigma = (0.5 * log_variance).exp().repeat_interleave(torch.tensor(SIZES))
    return weight + sigma * reference.weight_normals(SIZES, *WEIGHT_KEY.values())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=["f64", "f32"])
def test_weight_noise_and_its_gradients_equal_the_reference(dtype, tolerance):
    leaves = flat(dtype)
    actual = with_gradients(lambda w, lv: weight_noise(w, lv, STARTS, **WEIGHT_KEY), leaves)
    expected = with_gradients(plain_weight_noise, [leaf.detach().double().requires_grad_() for leaf in leaves])
    assert_all_near(actual, expected, tolerance)


def test_weight_noise_is_the_same_for_any_number_of_threads():
    leaves = [leaf.detach() for leaf in flat(torch.float32)]
    one = weight_noise(*leaves, STARTS, **WEIGHT_KEY)
    torch.set_num_threads(3)
    try:
        assert torch.equal(weight_noise(*leaves, STARTS, **WEIGHT_KEY), one)
    finally:
        torch.set_num_threads(1)
    assert not torch.equal(weight_noise(*leaves, STARTS, seed=7, step=4), one)


def test_weight_noise_opcheck():
    weight, log_variance = flat(torch.float32)
    torch.library.opcheck(torch.ops.task2vec_ext.weight_noise.default, (weight, log_variance, STARTS, 7, 3))
    torch.library.opcheck(torch.ops.task2vec_ext.weight_noise_backward.default, (weight.detach(), STARTS, 7, 3))


def test_weight_noise_bad_input():
    weight, log_variance = flat(torch.float32)
    with pytest.raises(ValueError, match=r"expected weight \[W\], log_variance \[K\] and starts \[K \+ 1\]"):
        weight_noise(weight, log_variance, STARTS[1:], **WEIGHT_KEY)
    with pytest.raises(TypeError, match="float32 or float64 tensors on cpu"):
        weight_noise(weight.half(), log_variance, STARTS, **WEIGHT_KEY)
    with pytest.raises(TypeError, match=r"expected starts of int64, got torch\.int32"):
        weight_noise(weight, log_variance, STARTS.int(), **WEIGHT_KEY)
    with pytest.raises(ValueError, match="all tensors on one device, got them on cpu, meta"):
        weight_noise(weight, log_variance, STARTS.to("meta"), **WEIGHT_KEY)
    for bad in (STARTS - 1, STARTS.clone().index_fill_(0, torch.tensor(2), 0), STARTS + (STARTS[-1] == STARTS)):
        with pytest.raises(ValueError, match=f"expected starts to ascend from 0 to {sum(SIZES)}"):
            weight_noise(weight, log_variance, bad, **WEIGHT_KEY)


def test_weight_noise_of_no_filters_and_its_second_derivative():
    assert weight_noise(torch.zeros(0), torch.zeros(0), torch.tensor([0]), **WEIGHT_KEY).shape == (0,)
    weight, log_variance = flat(torch.float32)
    out = weight_noise(weight, log_variance, STARTS, **WEIGHT_KEY)
    (gradient,) = torch.autograd.grad(out.square().sum(), log_variance, create_graph=True)
    with pytest.raises(NotImplementedError, match="weight_noise: it has first derivatives in reverse mode alone"):
        torch.autograd.grad(gradient.sum(), weight)


# ---- the CUDA kernels, emulated -----------------------------------------------------------------------------------


@pytest.fixture
def emulated(simt):
    return Runtime(simt, 0, 0, 1, True)


@pytest.mark.simt
@every_case
@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
def test_emulated_kernels_equal_the_cpu(case, layout, dtype, emulated):
    """Whatever they read is read alike, so only roundings differ: of the result, and of sums."""
    output, grad = (t.to(dtype).to(memory_format=layout) for t in case.tensors()[1:] * 2)
    sigma = torch.linspace(0.1, 1, case.filters)
    of_filter = case.options.get("groups", 1) > 1
    shape = output.shape if of_filter else (output.shape[0], 1, *output.shape[2:])
    norm = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    key = KEY.values()
    actual = noise_kernels.add_noise(output, norm, sigma, *key, runtime=emulated)
    expected = noise_kernels.add_noise(output.float(), norm, sigma, *key)
    rounding = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    assert actual.dtype == dtype
    assert ((actual.float() - expected).abs() <= rounding * expected.abs() + 1e-6).all()
    for norm_too in (True, False):
        actual = noise_kernels.add_noise_backward(grad, norm, sigma, *key, norm_too, runtime=emulated)
        expected = noise_kernels.add_noise_backward(grad.float(), norm, sigma, *key, norm_too)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()) if b.numel() else 0)


@pytest.mark.simt
def test_emulated_kernels_are_not_started_for_nothing(emulated):
    """CUDA refuses a grid of no blocks, and so does the emulation."""
    empty, sigma, key = torch.zeros(0, 5, 3, 3), torch.ones(5), KEY.values()
    assert noise_kernels.add_noise(empty, empty[:, :1], sigma, *key, runtime=emulated).shape == empty.shape
    of_sigma, of_norm = noise_kernels.add_noise_backward(empty, empty[:, :1], sigma, *key, True, runtime=emulated)
    assert (of_sigma.tolist(), of_norm.shape) == ([0] * 5, (0, 1, 3, 3))
    nothing, start = torch.zeros(0), torch.tensor([0])
    assert noise_kernels.add_weight_noise(nothing, nothing, start, *WEIGHT_KEY.values(), runtime=emulated).shape == (0,)
    assert noise_kernels.weight_noise_backward(nothing, start, *WEIGHT_KEY.values(), runtime=emulated).shape == (0,)


@pytest.mark.simt
def test_emulated_weight_noise_equals_the_cpu(emulated):
    weight, log_variance = (leaf.detach() for leaf in flat(torch.float32))
    sigma, key = log_variance.exp(), WEIGHT_KEY.values()
    actual = noise_kernels.add_weight_noise(weight, sigma, STARTS, *key, runtime=emulated)
    torch.testing.assert_close(
        actual, noise_kernels.add_weight_noise(weight, sigma, STARTS, *key), rtol=1e-6, atol=1e-6
    )
    actual = noise_kernels.weight_noise_backward(weight, STARTS, *key, runtime=emulated)
    torch.testing.assert_close(actual, noise_kernels.weight_noise_backward(weight, STARTS, *key), rtol=1e-5, atol=1e-4)
