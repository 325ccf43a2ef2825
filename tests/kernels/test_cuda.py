"""The kernels on a real GPU.

Fit for many processes (pytest -n 8): no test depends on another, and large tensors are made on the GPU.
"""

import pytest
import torch
from cases import CASES, TENSOR_CORE_CASES, TOLERANCE, Case, assert_near, every_case, oracle, tolerance
from pairs import EXACT, FAST, HARD, hard, loop, rows
from torch.nn import functional as F

from task2vec_ext import filter_grad_sq
from task2vec_ext.kernels import pairwise, reference
from task2vec_ext.kernels.bias_relu import bias_relu
from task2vec_ext.kernels.noise import local_noise, weight_noise
from task2vec_ext.kernels.pairwise import sym_distances
from task2vec_ext.kernels.routes import CUDA_ROUTES

pytestmark = pytest.mark.cuda

PRECISIONS = {
    "f32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "f16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}
LAYOUTS = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last}
BY_NAME = {case.name: case for case in CASES + TENSOR_CORE_CASES}
SIMPLE, WIDE = CASES[0], TENSOR_CORE_CASES[0]
# The reference takes no other; autograd does.
NUMERIC_PADDING = [case for case in CASES + TENSOR_CORE_CASES if not isinstance(case.arguments()["padding"], str)]
# A ResNet's own sizes: several stages of slices, more blocks than multiprocessors.
LARGE = [
    Case("resnet-conv3x3-56", 64, 64, (56, 56), (3, 3), samples=160, options={"padding": 1}),
    Case("resnet-conv3x3-s2-28", 128, 256, (28, 28), (3, 3), samples=40, options={"padding": 1, "stride": 2}),
    Case("resnet-conv1x1-14", 1024, 256, (14, 14), (1, 1), samples=8),
    Case("resnet-stem", 3, 64, (224, 224), (7, 7), samples=2, options={"padding": 3, "stride": 2}),
]

NOISE_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
NOISE_CASES = [case for case in NUMERIC_PADDING if "strips-of-padding" not in case.name] + LARGE[1:3]
LOG_VARIANCE = torch.linspace(-3, 0, 64)

every_route = pytest.mark.parametrize("route", CUDA_ROUTES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@pytest.fixture(params=PRECISIONS.values(), ids=PRECISIONS)
def dtype(request):
    """The inputs' dtype, with torch's precision for convolutions set as the id says."""
    dtype, precision = request.param
    settings = torch.backends.cudnn.conv
    before = settings.fp32_precision
    settings.fp32_precision = precision
    yield dtype
    settings.fp32_precision = before


def bound(dtype, route):
    """How near float64 a result must come with the precision set."""
    rounds = dtype != torch.float32 or torch.backends.cudnn.conv.fp32_precision == "tf32"
    return tolerance(dtype, route, rounds and torch.cuda.get_device_capability() >= (8, 0))


def on_gpu(case, dtype, layout=torch.contiguous_format, device="cuda"):
    made = case.tensors(dtype, device if case in LARGE else "cpu")  # one CPU thread takes seconds for a large case
    return tuple(t.to(device, memory_format=layout) for t in made)


def exact(x, delta, arguments):
    """By plain torch operations in float64, from the very numbers that the operator gets."""
    return reference.filter_grad_sq(x.double(), delta.double(), **arguments).cpu()


@every_case
@every_route
@pytest.mark.parametrize("dtype", [PRECISIONS["f32"], PRECISIONS["tf32"]], ids=["f32", "tf32"], indirect=True)
def test_every_route_equals_autograd_at_batch_size_one(case, route, dtype):
    actual = filter_grad_sq(*on_gpu(case, dtype), **case.arguments(), route=route)
    assert actual.dtype == torch.float32
    assert_near(actual.cpu(), oracle(case), bound(dtype, route))


@pytest.mark.parametrize("case", NUMERIC_PADDING, ids=lambda case: case.name)
@every_layout
@every_route
def test_every_route_equals_the_reference(case, layout, route, dtype):
    x, delta = on_gpu(case, dtype, layout)
    actual = filter_grad_sq(x, delta, **case.arguments(), route=route)
    assert actual.dtype == torch.float32
    assert_near(actual.cpu(), exact(x, delta, case.arguments()), bound(dtype, route))


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
@every_layout
def test_layers_of_a_resnet_equal_the_reference(case, layout, dtype):
    x, delta = on_gpu(case, dtype, layout)
    actual = filter_grad_sq(x, delta, **case.arguments(), route="direct")
    chosen = range(0, case.samples, max(1, case.samples // 4))  # a few samples: the reference keeps whole gradients
    for n in chosen:
        expected = exact(x[n : n + 1], delta[n : n + 1], case.arguments())
        # Sums of thousands of products: 8 times what the small cases may be off.
        assert_near(actual[n : n + 1].cpu(), expected, 8 * bound(dtype, "direct"))


@every_route
def test_slices_are_read_where_they_lie(route, dtype):
    x, delta = on_gpu(WIDE, dtype)
    expected = exact(x, delta, WIDE.arguments())
    for extra in (8, 1):  # vectors of 16 bytes, and not
        x_wide, delta_wide = (
            F.pad(t, (2, 1, 3, 2, extra, extra), value=float("nan")).to(memory_format=torch.channels_last)
            for t in (x, delta)
        )
        inside = (slice(None), slice(extra, -extra), slice(3, -2), slice(2, -1))
        actual = filter_grad_sq(x_wide[inside], delta_wide[inside], **WIDE.arguments(), route=route)
        assert_near(actual.cpu(), expected, bound(dtype, route))


@pytest.mark.parametrize("case", [SIMPLE, *TENSOR_CORE_CASES[:4], LARGE[0]], ids=lambda case: case.name)
@every_layout
@every_route
def test_the_same_call_gives_the_same_bits(case, layout, route, dtype):
    x, delta = on_gpu(case, dtype, layout)
    first, second = (filter_grad_sq(x, delta, **case.arguments(), route=route) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("case", [SIMPLE, WIDE], ids=lambda case: case.name)
@every_route
def test_side_stream(case, route, dtype):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x, delta = on_gpu(case, dtype)
        actual = filter_grad_sq(x, delta, **case.arguments(), route=route)
    stream.synchronize()
    assert_near(actual.cpu(), exact(x, delta, case.arguments()), bound(dtype, route))


@pytest.mark.parametrize("case", [SIMPLE, WIDE], ids=lambda case: case.name)
@every_route
def test_second_gpu_leaves_the_current_device_alone(case, route, dtype):
    if torch.cuda.device_count() < 2:
        pytest.skip("cuda: one GPU")
    x, delta = on_gpu(case, dtype, torch.channels_last, "cuda:1")
    with torch.cuda.device(0):
        actual = filter_grad_sq(x, delta, **case.arguments(), route=route)
        assert torch.cuda.current_device() == 0
    assert actual.device == x.device
    assert_near(actual.cpu(), exact(x, delta, case.arguments()), bound(dtype, route))


@pytest.mark.parametrize("case", [SIMPLE, WIDE], ids=lambda case: case.name)
@every_route
def test_replay_of_a_captured_graph(case, route, dtype):
    x, delta = on_gpu(case, dtype, torch.channels_last)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries set themselves up in a first call
        filter_grad_sq(x, delta, **case.arguments(), route=route)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = filter_grad_sq(x, delta, **case.arguments(), route=route)
    x.copy_(x.flip(0)), delta.copy_(delta.flip(0))
    graph.replay()
    assert_near(actual.cpu(), exact(x, delta, case.arguments()), bound(dtype, route))


def test_full_precision_of_convolutions_is_obeyed():
    settings = torch.backends.cudnn.conv
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        actual = filter_grad_sq(*on_gpu(WIDE, torch.float32, torch.channels_last), **WIDE.arguments())
    finally:
        settings.fp32_precision = before
    assert_near(actual.cpu(), oracle(WIDE), TOLERANCE[torch.float32])


def test_float64_is_refused():
    with pytest.raises(TypeError, match="on cuda"):
        filter_grad_sq(*on_gpu(SIMPLE, torch.float64), **SIMPLE.arguments())


@every_route
def test_no_samples(route, dtype):
    x, delta = (t[:0] for t in on_gpu(SIMPLE, dtype))
    assert filter_grad_sq(x, delta, **SIMPLE.arguments(), route=route).shape == (0, SIMPLE.filters)


# What a sanitizer runs, which makes kernels a hundred times slower (benchmarks/gpu.sh): every kernel, precision and
# layout, several slices, groups and tiles, and edges of them.
SANITIZED = [
    *[("conv3x3-p1-wide", layout, "direct", name) for layout in LAYOUTS for name in PRECISIONS],
    *[("conv3x3-s2-p1-wide", "channels-last", "shifted_gram", name) for name in PRECISIONS],
    *[("conv3x3-p1-g3", "channels-first", route, "f32") for route in CUDA_ROUTES],  # direct: the narrow kernel
    *[("conv3x3-many-slices", "channels-last", "direct", name) for name in ("tf32", "bf16")],
    ("conv3x3-two-tiles-of-channels-and-filters", "channels-last", "direct", "tf32"),
    *[("conv7x7-s2-p3-first-layer", "channels-last", "direct", name) for name in ("tf32", "bf16")],
    ("many-filters-many-columns", "channels-first", "direct", "f32"),
    ("conv3x3-g2-wide", "channels-last", "direct", "bf16"),
    ("conv1x1-two-tiles-of-channels-and-filters", "channels-last", "direct", "bf16"),
    ("conv1x1-two-tiles-of-channels-and-filters", "channels-last", "gram", "tf32"),
]


@pytest.mark.sanitizer
@pytest.mark.parametrize(
    ("case", "layout", "route", "dtype"),
    [(BY_NAME[case], LAYOUTS[layout], route, PRECISIONS[name]) for case, layout, route, name in SANITIZED],
    ids=["-".join(entry) for entry in SANITIZED],
    indirect=["dtype"],
)
def test_every_kernel_once(case, layout, route, dtype):
    x, delta = on_gpu(case, dtype, layout)
    actual = filter_grad_sq(x, delta, **case.arguments(), route=route)
    assert_near(actual.cpu(), exact(x, delta, case.arguments()), bound(dtype, route))


# ---- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NOISE_CASES, ids=lambda case: case.name)
@every_layout
@pytest.mark.parametrize("dtype", NOISE_DTYPES.values(), ids=NOISE_DTYPES)
def test_local_noise_equals_the_cpus(case, layout, dtype):
    check_local_noise(case, layout, dtype)


@pytest.mark.sanitizer
@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_local_noise_once(layout, dtype):
    check_local_noise(WIDE, layout, dtype)


def check_local_noise(case, layout, dtype):
    tensors = [t.to(dtype) for t in case.tensors(torch.float64)]

    def run(device):
        x, output = (t.to(device, memory_format=layout) for t in tensors)
        if device == "cpu":  # of the very numbers that the GPU gets
            x, output = x.float(), output.float()
        leaves = [output, x, torch.linspace(-3, 0, case.filters, device=device)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        out = local_noise(*leaves, **case.arguments(), seed=2**40 + 5, layer=3, step=2)
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out)
        return out, *torch.autograd.grad((out * direction).sum(), leaves)

    bound = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for actual, expected in zip(run("cuda"), run("cpu"), strict=True):
        assert (actual.float().cpu() - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.sanitizer
def test_weight_noise_equals_the_cpus():
    def run(device):
        generator = torch.Generator().manual_seed(0)
        sizes = [147, 27, 2, 1, 400, 1025]
        starts = torch.tensor([0, *sizes]).cumsum(0).to(device)
        weight = torch.randn(sum(sizes), generator=generator).to(device).requires_grad_()
        log_variance = torch.linspace(-4, 0, len(sizes)).to(device).requires_grad_()
        out = weight_noise(weight, log_variance, starts, seed=7, step=3)
        return out, *torch.autograd.grad(out.square().sum(), (weight, log_variance))

    for actual, expected in zip(run("cuda"), run("cpu"), strict=True):
        assert (actual.cpu() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_noise_gives_the_same_bits_twice():
    x = torch.randn(4, 64, 30, 31, device="cuda", requires_grad=True)

    def run():
        out = local_noise(x, x, LOG_VARIANCE.cuda(), (64, 64, 3, 3), padding=(1, 1), seed=1, layer=0, step=0)
        return out, *torch.autograd.grad(out.square().sum(), x)

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


# ---- d_sym ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["float32-first", "float64"])
def promised(request, monkeypatch):
    """How near d_sym must come, with the pass set that comes first."""
    fast = request.param == "float32-first"
    monkeypatch.setattr(pairwise, "FAST_FROM", 0 if fast else 1 << 62)
    return FAST if fast else EXACT


@pytest.mark.parametrize("name", [pytest.param(HARD[0], marks=pytest.mark.sanitizer), *HARD[1:]])
def test_distances_equal_the_loop_on_hard_inputs(name, promised):
    values = hard(name)
    actual = sym_distances(values.cuda())
    assert actual.is_cuda
    torch.testing.assert_close(actual.cpu(), loop(values, values), rtol=0, atol=promised)
    assert torch.equal(actual, actual.T)
    assert torch.equal(actual.diagonal(), torch.zeros_like(actual.diagonal()))
    cross = sym_distances(values[:4].cuda(), values[3:].cuda())
    torch.testing.assert_close(cross.cpu(), loop(values[:4], values[3:]), rtol=0, atol=promised)


@pytest.mark.parametrize("A", [1, 5, 130])
@pytest.mark.parametrize("B", [1, 67])
@pytest.mark.parametrize("K", [1, 16, 519])
def test_distances_of_any_number_of_rows_and_filters(A, B, K, promised):
    a, b = rows(A, K), 3 * rows(B, K, seed=7)
    torch.testing.assert_close(sym_distances(a.cuda(), b.cuda()).cpu(), loop(a, b), rtol=0, atol=promised)


def test_distances_of_many_tasks_equal_the_cpus_and_have_the_same_bits_twice(promised):
    values = rows(700, 8512)  # more blocks than multiprocessors; the paper's number of filters
    on_gpu = values.cuda()
    first, second = sym_distances(on_gpu), sym_distances(on_gpu)
    assert torch.equal(first, second)
    some = slice(0, 700, 100)
    torch.testing.assert_close(first[some].cpu(), loop(values[some], values), rtol=0, atol=promised)


@pytest.mark.parametrize("with_other", [False, True], ids=["bias", "bias-and-sum"])
@pytest.mark.parametrize("dtype", NOISE_DTYPES.values(), ids=NOISE_DTYPES)
def test_bias_relu_gives_torchs_bits(dtype, with_other):
    output, other = (
        torch.randn(32, 72, 29, 31, device="cuda").to(dtype, memory_format=torch.channels_last) for _ in "xy"
    )
    bias = torch.randn(72, device="cuda")
    total = output + bias.to(dtype)[:, None, None]
    expected = torch.relu(total + other if with_other else total)
    actual = bias_relu(output, bias, other if with_other else None)
    assert torch.equal(actual, expected)
    assert actual.data_ptr() == output.data_ptr()
