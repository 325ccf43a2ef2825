"""The operator on a real GPU."""

import pytest
import torch
from cases import CASES, TOLERANCE, assert_near, every_case, oracle
from torch.nn import functional as F

from task2vec_ext import filter_grad_sq, reference
from task2vec_ext._routes import ROUTES

pytestmark = pytest.mark.cuda

every_route = pytest.mark.parametrize("route", ROUTES)


@every_case
@every_route
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
def test_every_route_equals_the_reference(case, route, dtype):
    x, delta = case.tensors(dtype)
    exact = oracle(case) if dtype == torch.float32 else None
    arguments = case.arguments()
    if exact is None:
        if isinstance(arguments["padding"], str):
            pytest.skip("string padding is compared in float32")
        exact = reference.filter_grad_sq(x.double(), delta.double(), **arguments)
    actual = filter_grad_sq(x.cuda(), delta.cuda(), **arguments, route=route)
    assert actual.dtype == torch.float32
    assert_near(actual.cpu(), exact, TOLERANCE[dtype])


@every_route
def test_channels_last_and_slices(route):
    case = CASES[0]
    x, delta = (t.cuda() for t in case.tensors(torch.float32))
    expected = oracle(case)
    last = (t.to(memory_format=torch.channels_last) for t in (x, delta))
    assert_near(filter_grad_sq(*last, **case.arguments(), route=route).cpu(), expected, TOLERANCE[torch.float32])
    cut = F.pad(x, (2, 1, 3, 0))[:, :, 3:, 2:-1]
    assert_near(filter_grad_sq(cut, delta, **case.arguments(), route=route).cpu(), expected, TOLERANCE[torch.float32])


@every_route
def test_side_stream(route):
    case = CASES[0]
    x, delta = case.tensors(torch.float32)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        actual = filter_grad_sq(x.cuda(), delta.cuda(), **case.arguments(), route=route)
    stream.synchronize()
    assert_near(actual.cpu(), oracle(case), TOLERANCE[torch.float32])


@every_route
def test_second_gpu_leaves_the_current_device_alone(route):
    if torch.cuda.device_count() < 2:
        pytest.skip("cuda: one GPU")
    case = CASES[0]
    x, delta = case.tensors(torch.float32)
    actual = filter_grad_sq(x.to("cuda:1"), delta.to("cuda:1"), **case.arguments(), route=route)
    assert torch.cuda.current_device() == 0
    assert_near(actual.cpu(), oracle(case), TOLERANCE[torch.float32])


def test_float64_is_refused():
    x, delta = CASES[0].tensors(torch.float64)
    with pytest.raises(TypeError, match="on cuda"):
        filter_grad_sq(x.cuda(), delta.cuda(), **CASES[0].arguments())


@every_route
def test_no_samples(route):
    x, delta = (t[:0].cuda() for t in CASES[0].tensors(torch.float32))
    assert filter_grad_sq(x, delta, **CASES[0].arguments(), route=route).shape == (0, CASES[0].filters)
