"""The CUDA kernels, their launch code and their Python wrapper, run on the CPU (csrc/simt.h)."""

import pytest
import torch
from cases import CASES, TOLERANCE, Case, assert_near, every_case, oracle
from torch.nn import functional as F

from task2vec_ext import _cuda, _gram, ops, reference
from task2vec_ext._geometry import conv_geometry
from task2vec_ext._routes import ROUTES

pytestmark = pytest.mark.simt

every_route = pytest.mark.parametrize("route", ROUTES)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"]
)


def run(x, delta, arguments, route, multiprocessors=1, tensor_cores=True):
    """`filter_grad_sq` as on a GPU, with the emulated kernels."""
    from task2vec_ext import _simt

    padding, stride = arguments["padding"], arguments["stride"]
    if isinstance(padding, str):
        x, padding = ops._string_padding(x, padding, arguments["weight_shape"], stride, arguments["dilation"])
    conv = conv_geometry(
        x, delta, arguments["weight_shape"], stride, padding, arguments["dilation"], arguments["groups"]
    )
    return _cuda.filter_grad_sq_cuda(x, delta, conv, route, _cuda.Runtime(_simt, 0, 0, multiprocessors, tensor_cores))


@every_case
@every_route
def test_every_route_equals_autograd_at_batch_size_one(case, route):
    actual = run(*case.tensors(torch.float32), case.arguments(), route)
    assert actual.dtype == torch.float32
    assert_near(actual, oracle(case), TOLERANCE[torch.float32])


@every_route
@every_dtype
@pytest.mark.parametrize("case", [CASES[0], CASES[8], CASES[9]], ids=lambda c: c.name)
def test_16_bit_inputs_are_accumulated_in_float32(case, route, dtype):
    x, delta = case.tensors(dtype)
    expected = reference.filter_grad_sq(x.double(), delta.double(), **case.arguments())
    assert_near(run(x, delta, case.arguments(), route), expected, TOLERANCE[dtype])


@every_route
@pytest.mark.parametrize("name", ["conv3x3-p1", "depthwise3x3"])
@pytest.mark.parametrize("layout", ["channels-last", "slice", "transposed"])
def test_any_layout_is_read_where_it_lies(route, name, layout):
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
def test_direct_route_shared_by_several_blocks(multiprocessors):
    case = next(case for case in CASES if case.name == "many-filters-many-columns")
    actual = run(*case.tensors(torch.float32), case.arguments(), "direct", multiprocessors)
    assert_near(actual, oracle(case), TOLERANCE[torch.float32])


@pytest.mark.parametrize("group_filters", [15, 16], ids=["narrow", "tiled"])
def test_direct_route_on_either_side_of_the_narrow_kernel(group_filters):
    case = Case("", 6, 2 * group_filters, (5, 5), (3, 3), options={"padding": 1, "groups": 2})
    actual = run(*case.tensors(torch.float32), case.arguments(), "direct")
    assert_near(actual, oracle(case), TOLERANCE[torch.float32])


@pytest.mark.parametrize("route", ["gram", "shifted_gram"])
def test_gram_routes_cut_into_strips(route, monkeypatch):
    monkeypatch.setattr(_cuda, "WORKSPACE_BYTES", 1)
    case = next(case for case in CASES if case.name == "conv3x2-asymmetric")
    assert_near(run(*case.tensors(torch.float32), case.arguments(), route), oracle(case), TOLERANCE[torch.float32])


@pytest.mark.parametrize("route", ["gram", "shifted_gram"])
@pytest.mark.parametrize("name", ["conv3x2-asymmetric", "conv3x3-p1-g3", "unused-last-rows"])
def test_gram_routes_cut_into_uneven_strips(route, name, monkeypatch):
    monkeypatch.setattr(_gram, "_largest_block", lambda *_: (1, 2))
    case = next(case for case in CASES if case.name == name)
    assert_near(run(*case.tensors(torch.float32), case.arguments(), route), oracle(case), TOLERANCE[torch.float32])


@every_route
@pytest.mark.parametrize("name", ["conv3x3-p1", "depthwise3x3"])
def test_samples_further_apart_than_32_bits_count(route, name):
    """4 GiB of addresses of which only the touched pages are real."""

    def far(t):
        return torch.empty(2**31 + t[0].numel(), dtype=t.dtype).as_strided(t.shape, (2**31, *t.stride()[1:])).copy_(t)

    case = next(case for case in CASES if case.name == name)
    x, delta = case.tensors(torch.bfloat16)
    expected = run(x, delta, case.arguments(), route)
    assert torch.equal(run(far(x), far(delta), case.arguments(), route), expected)


def test_blocks_fill_the_gpu_but_never_outnumber_the_columns():
    case = Case("", 64, 64, (14, 14), (3, 3), samples=2, options={"padding": 1})
    x, delta = case.tensors(torch.float32)
    conv = conv_geometry(x, delta, (64, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1)  # two tiles of filters, nine of columns
    assert [_cuda._splits(conv, multiprocessors) for multiprocessors in (0, 1, 3, 132)] == [1, 2, 6, 9]


@every_route
def test_the_same_call_gives_the_same_bits(route):
    case = CASES[8]
    first, second = (run(*case.tensors(torch.float32), case.arguments(), route) for _ in range(2))
    assert torch.equal(first, second)
