"""The CUDA kernels, their launch code and their Python wrapper, run on the CPU (tests/simt)."""

import pytest
import torch
from cases import CASES, TENSOR_CORE_CASES, TOLERANCE, Case, assert_near, every_case, oracle, tolerance
from torch.nn import functional as F

from task2vec_ext.kernels import cuda, geometry, gram, reference
from task2vec_ext.kernels.geometry import conv_geometry
from task2vec_ext.kernels.native import Runtime
from task2vec_ext.kernels.routes import CUDA_ROUTES

pytestmark = pytest.mark.simt

every_route = pytest.mark.parametrize("route", CUDA_ROUTES)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"]
)
every_precision = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["tf32", "f16", "bf16"]
)


@pytest.fixture(autouse=True)
def precision():
    """torch's setting for convolutions, full float32 where a test does not choose; put back afterwards."""
    settings = torch.backends.cudnn.conv
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    yield settings
    settings.fp32_precision = before


@pytest.fixture
def tensor_cores_for_everything(precision, monkeypatch):
    precision.fp32_precision = "tf32"
    monkeypatch.setattr(cuda, "NARROW_GROUP_FILTERS", 1)


@pytest.fixture
def run(simt):
    """`filter_grad_sq` as on a GPU, with the emulated kernels."""

    def run(x, delta, arguments, route, multiprocessors=1, tensor_cores=True):
        padding, stride = arguments["padding"], arguments["stride"]
        if isinstance(padding, str):
            x, padding = geometry.string_padding(x, padding, arguments["weight_shape"], stride, arguments["dilation"])
        conv = conv_geometry(
            x, delta, arguments["weight_shape"], stride, padding, arguments["dilation"], arguments["groups"]
        )
        runtime = Runtime(simt, 0, 0, multiprocessors, tensor_cores)
        return cuda.filter_grad_sq_cuda(x, delta, conv, route, runtime)

    return run


@every_case
@every_route
def test_every_route_equals_autograd_at_batch_size_one(case, route, run):
    actual = run(*case.tensors(torch.float32), case.arguments(), route)
    assert actual.dtype == torch.float32
    assert_near(actual, oracle(case), TOLERANCE[torch.float32])


@every_route
@every_dtype
@pytest.mark.parametrize("case", [CASES[0], CASES[8], CASES[9]], ids=lambda c: c.name)
def test_16_bit_inputs_are_accumulated_in_float32(case, route, dtype, run):
    x, delta = case.tensors(dtype)
    expected = reference.filter_grad_sq(x.double(), delta.double(), **case.arguments())
    actual = run(x, delta, case.arguments(), route, tensor_cores=False)  # a GPU before sm_80
    assert_near(actual, expected, TOLERANCE[dtype])


def to_tf32(t):
    """Round float32 to 10 bits behind the point, ties away from zero."""
    return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("case", CASES + TENSOR_CORE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
@every_route
@every_precision
def test_tensor_cores_equal_the_reference(case, layout, route, dtype, tensor_cores_for_everything, run):
    arguments = case.arguments()
    x, delta = case.tensors(dtype)
    if isinstance(arguments["padding"], str):
        x, arguments["padding"] = geometry.string_padding(
            x, arguments["padding"], arguments["weight_shape"], arguments["stride"], arguments["dilation"]
        )
    operands, bound = (x, delta), tolerance(dtype, route, tensor_cores=True)
    if route == "direct":  # nothing but the operands is rounded: allow for no more
        operands, bound = [to_tf32(t) if dtype == torch.float32 else t for t in operands], TOLERANCE[dtype]
    expected = reference.filter_grad_sq(*(t.double() for t in operands), **arguments)
    if layout == "channels-last":
        x, delta = (t.to(memory_format=torch.channels_last) for t in (x, delta))
    assert_near(run(x, delta, arguments, route), expected, bound)


@every_route
@every_precision
def test_tensor_cores_read_slices_where_they_lie(route, dtype, tensor_cores_for_everything, run):
    """Vectors of 16 bytes inside a larger channels-last tensor, and what only the float32 tile's neighbours hold."""
    case = next(case for case in TENSOR_CORE_CASES if case.name == "conv3x3-p1-wide")
    x, delta = case.tensors(dtype)
    plain = run(x, delta, case.arguments(), route)
    for extra in (8, 1):  # aligned, and not
        x_wide, delta_wide = (
            F.pad(t, (2, 1, 3, 2, extra, extra), value=float("nan")).to(memory_format=torch.channels_last)
            for t in (x, delta)
        )
        inside = (slice(None), slice(extra, -extra), slice(3, -2), slice(2, -1))
        assert torch.equal(run(x_wide[inside], delta_wide[inside], case.arguments(), route), plain)


@every_precision
def test_tensor_cores_read_nothing_that_no_output_reads(dtype, tensor_cores_for_everything, run):
    case = Case("", 8, 16, (8, 9), (2, 2), options={"stride": 3, "padding": 1})
    x, delta = case.tensors(dtype)
    expected = run(x, delta, case.arguments(), "direct")
    used = torch.zeros(8, 9, dtype=torch.bool)
    for oh in range(3):
        for ow in range(delta.shape[3]):
            used[max(3 * oh - 1, 0) : 3 * oh + 1, max(3 * ow - 1, 0) : 3 * ow + 1] = True
    assert not used.all()
    for layout in (torch.contiguous_format, torch.channels_last):
        poisoned = x.masked_fill(~used, float("nan")).contiguous(memory_format=layout)
        grad_output = delta.contiguous(memory_format=layout)
        assert torch.equal(run(poisoned, grad_output, case.arguments(), "direct"), expected)


@pytest.mark.parametrize("multiprocessors", [2, 100])
@pytest.mark.parametrize("name", ["conv3x3-two-tiles-of-channels-and-filters", "conv5x5-three-tiles-of-taps"])
def test_tensor_core_tiles_shared_by_several_blocks(name, multiprocessors, precision, run):
    precision.fp32_precision = "tf32"
    case = next(case for case in TENSOR_CORE_CASES if case.name == name)
    x, delta = case.tensors(torch.float32)
    expected = reference.filter_grad_sq(to_tf32(x).double(), to_tf32(delta).double(), **case.arguments())
    assert_near(run(x, delta, case.arguments(), "direct", multiprocessors), expected, TOLERANCE[torch.float32])


def test_a_window_too_large_for_shared_memory_takes_the_float32_tile(precision, run):
    precision.fp32_precision = "tf32"
    case = Case("", 8, 16, (125, 125), (3, 3), samples=1, options={"dilation": 60})
    expected = oracle(case)
    assert_near(run(*case.tensors(torch.float32), case.arguments(), "direct"), expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("name", "rounds"),
    [("tf32", True), ("ieee", False), ("none", False)],
)
def test_float32_follows_the_precision_of_torchs_convolutions(name, rounds, precision, run):
    precision.fp32_precision = name
    assert cuda.rounds_operands(torch.float32) is rounds
    assert cuda.rounds_operands(torch.bfloat16)
    case = next(case for case in TENSOR_CORE_CASES if case.name == "conv3x3-p1-wide")
    expected = oracle(case)
    for route in CUDA_ROUTES:
        actual = run(*case.tensors(torch.float32), case.arguments(), route)
        error = (actual - expected).abs().max() / expected.max()
        assert bool(error > TOLERANCE[torch.float32]) is rounds
        assert_near(actual, expected, tolerance(torch.float32, route, rounds))


def test_the_older_switch_is_followed_too(precision):
    precision.fp32_precision = "tf32"  # or the older switch could not be read
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        assert not cuda.rounds_operands(torch.float32)
        torch.backends.cudnn.allow_tf32 = True
        assert cuda.rounds_operands(torch.float32)
    finally:
        torch.backends.cudnn.allow_tf32 = before


@every_route
@pytest.mark.parametrize("name", ["conv3x3-p1", "depthwise3x3"])
@pytest.mark.parametrize("layout", ["channels-last", "slice", "transposed"])
def test_any_layout_is_read_where_it_lies(route, name, layout, run):
    case = next(case for case in CASES if case.name == name)
    x, delta = case.tensors(torch.float32)
    expected = oracle(case)
    if layout == "channels-last":
        x, delta = (t.to(memory_format=torch.channels_last) for t in (x, delta))
    elif layout == "transposed":
        x, delta = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (x, delta))
    else:
        x = F.pad(x, (2, 1, 3, 0), value=float("nan"))[:, :, 3:, 2:-1]
        delta = torch.cat([torch.full_like(delta, float("nan")), delta], 1)[:, delta.shape[1] :]
    assert_near(run(x, delta, case.arguments(), route), expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("multiprocessors", [1, 2, 100])
def test_direct_route_shared_by_several_blocks(multiprocessors, run):
    case = next(case for case in CASES if case.name == "many-filters-many-columns")
    actual = run(*case.tensors(torch.float32), case.arguments(), "direct", multiprocessors)
    assert_near(actual, oracle(case), TOLERANCE[torch.float32])


@pytest.mark.parametrize("group_filters", [15, 16], ids=["narrow", "tiled"])
def test_direct_route_on_either_side_of_the_narrow_kernel(group_filters, run):
    case = Case("", 6, 2 * group_filters, (5, 5), (3, 3), options={"padding": 1, "groups": 2})
    actual = run(*case.tensors(torch.float32), case.arguments(), "direct")
    assert_near(actual, oracle(case), TOLERANCE[torch.float32])


@pytest.mark.parametrize("route", ["gram", "shifted_gram"])
def test_gram_routes_cut_into_strips(route, monkeypatch, run):
    monkeypatch.setattr(cuda, "WORKSPACE_BYTES", 1)
    case = next(case for case in CASES if case.name == "conv3x2-asymmetric")
    assert_near(run(*case.tensors(torch.float32), case.arguments(), route), oracle(case), TOLERANCE[torch.float32])


@pytest.mark.parametrize("route", ["gram", "shifted_gram"])
@pytest.mark.parametrize("name", ["conv3x2-asymmetric", "conv3x3-p1-g3", "unused-last-rows"])
def test_gram_routes_cut_into_uneven_strips(route, name, monkeypatch, run):
    monkeypatch.setattr(gram, "_largest_block", lambda *_: (1, 2))
    case = next(case for case in CASES if case.name == name)
    assert_near(run(*case.tensors(torch.float32), case.arguments(), route), oracle(case), TOLERANCE[torch.float32])


@every_route
@pytest.mark.parametrize("name", ["conv3x3-p1", "depthwise3x3", "conv3x3-p1-wide"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["channels-first", "last"])
def test_samples_further_apart_than_32_bits_count(route, name, layout, run):
    """4 GiB of addresses of which only the touched pages are real."""

    def far(t):
        return torch.empty(2**31 + t[0].numel(), dtype=t.dtype).as_strided(t.shape, (2**31, *t.stride()[1:])).copy_(t)

    case = next(case for case in CASES + TENSOR_CORE_CASES if case.name == name)
    x, delta = (t.to(memory_format=layout) for t in case.tensors(torch.bfloat16))
    expected = run(x, delta, case.arguments(), route)
    assert torch.equal(run(far(x), far(delta), case.arguments(), route), expected)


def test_blocks_fill_the_gpu_but_never_outnumber_the_columns():
    assert [cuda._splits(2, 9, multiprocessors) for multiprocessors in (0, 1, 3, 132)] == [1, 2, 6, 9]


@every_route
@pytest.mark.parametrize("name", ["ieee", "tf32"])
def test_the_same_call_gives_the_same_bits(route, name, precision, run):
    precision.fp32_precision = name
    case = TENSOR_CORE_CASES[0]
    first, second = (run(*case.tensors(torch.float32), case.arguments(), route, 100) for _ in range(2))
    assert torch.equal(first, second)
