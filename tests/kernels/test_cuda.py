"""The operator on a real GPU."""

import pytest
import torch
from cases import CASES, TENSOR_CORE_CASES, TOLERANCE, Case, assert_near, every_case, oracle, tolerance
from torch.nn import functional as F

from task2vec_ext import filter_grad_sq
from task2vec_ext.kernels import reference
from task2vec_ext.kernels.noise import local_noise, weight_noise
from task2vec_ext.kernels.routes import CUDA_ROUTES

pytestmark = pytest.mark.cuda

PRECISIONS = {
    "f32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "f16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}
LAYOUTS = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last}
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
    return tuple(t.to(device, memory_format=layout) for t in case.tensors(dtype))


def exact(x, delta, arguments):
    """float64 on the CPU, from the very numbers that the GPU gets."""
    return reference.filter_grad_sq(x.cpu().double(), delta.cpu().double(), **arguments)


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
    chosen = range(0, case.samples, max(1, case.samples // 4))  # a few samples: float64 on the CPU takes its time
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


# ---- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NOISE_CASES, ids=lambda case: case.name)
@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
def test_local_noise_equals_the_cpus(case, layout, dtype):
    def run(device):
        x, output = (t.to(dtype).to(device, memory_format=layout) for t in case.tensors(torch.float64))
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
