"""The limits of benchmarks/_rounding.py hold for what rounds as a GPU does, and not for what is wrong."""

import pytest
import torch
from torch.nn import functional as F

from task2vec_ext.kernels import cuda, filter_grad_sq, reference
from task2vec_ext.kernels.geometry import conv_geometry
from task2vec_ext.kernels.native import Runtime
from task2vec_ext.kernels.routes import CUDA_ROUTES, available_routes

# Shapes of a ResNet whose sums are long: a stem, early, middle and last layers.
SHAPES = {
    "stem": (3, 16, 56, 7, 2, 3),
    "early": (32, 32, 28, 3, 1, 1),
    "strided": (32, 64, 28, 3, 2, 1),
    "middle": (64, 64, 14, 3, 1, 1),
    "last": (256, 64, 7, 3, 1, 1),
    "pointwise": (256, 64, 14, 1, 1, 0),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def layer(request):
    return request.param


@pytest.fixture(params=["random", "images", "pooled"])
def tensors(request, layer):
    """Standard normal numbers; positive inputs, where sums do not cancel, under sparse gradients; and the same under
    the gradient of average pooling, whose rounding is the same at every location."""
    channels, filters, size, kernel, stride, padding = layer
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, size, size, generator=generator)
    out = (size + 2 * padding - kernel) // stride + 1
    delta = torch.randn(2, filters, out, out, generator=generator)
    if request.param == "images":
        x, delta = x.relu() + 1, (delta + 0.5).relu() * 1e-4
    elif request.param == "pooled":
        x, delta = x.relu() + 1, delta[:, :, :1, :1].expand_as(delta).contiguous()
    return x, delta, ((filters, channels, kernel, kernel), (stride,) * 2, (padding,) * 2, (1, 1), 1)


def nearest(t):
    """TF32 to the nearest, as our kernels round."""
    return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def cut(t):
    """TF32 as tensor cores take float32 that nobody has rounded."""
    return (t.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def gram_form(x, delta, layer, rounded):
    """The Gram route on tensor cores: pixels rounded as given, the matrix and one side of the form to the nearest."""
    (_, _, *kernel), stride, padding, dilation, _ = layer
    u = F.unfold(rounded(x).double(), tuple(kernel), dilation, padding, stride)
    gram = nearest((u.transpose(1, 2) @ u).float()).double()
    d = delta.flatten(2)
    return torch.einsum("noq,nqr,nor->no", nearest(d).double(), gram, d.double())


def test_float32_routes_of_the_cpu_are_within_their_limits(tensors):
    from _rounding import expect

    x, delta, layer = tensors
    for route in available_routes(conv_geometry(x, delta, *layer), "cpu"):
        actual = filter_grad_sq(x, delta, *layer, route=route)
        found = expect(x, delta, layer, route, "fp32").compare(actual)
        assert found.error_to_limit <= 1, route  # 0.9 for pooled: equal terms round alike; others 0.1
        assert expect(x, delta, layer, route, "fp32").compare(actual * 1.001).error_to_limit > 1, route


@pytest.mark.parametrize("rounded", [nearest, cut])
def test_tf32_as_emulated_is_within_its_limits(tensors, rounded):
    from _rounding import expect

    x, delta, layer = tensors
    direct = reference.filter_grad_sq(nearest(x).double(), nearest(delta).double(), *layer)
    gram = gram_form(x, delta, layer, rounded)
    for route, actual in (("direct", direct), ("gram", gram), ("shifted_gram", gram)):
        expected = expect(x, delta, layer, route, "tf32")
        assert expected.compare(actual).error_to_limit <= 0.8, route
        assert expected.compare(actual).error_to_limit > 0.002, route  # no idle limit
        assert expected.compare(actual * 1.1).error_to_limit > 1, route


def test_16_bit_numbers_in_the_gram_routes_are_within_their_limits(tensors):
    from _rounding import expect

    x, delta = (t.bfloat16() for t in tensors[:2])
    actual = gram_form(x.float(), delta.float(), tensors[2], nearest)
    expected = expect(x, delta, tensors[2], "gram", "bf16")
    assert 0.002 < expected.compare(actual).error_to_limit <= 0.8
    assert expected.compare(actual * 1.02).error_to_limit > 1


def test_a_missing_row_of_outputs_is_more_than_rounding(tensors):
    from _rounding import expect

    x, delta, layer = tensors
    wrong = delta.clone()
    wrong[:, :, -1] = 0
    for route, precision in (("direct", "fp32"), ("direct", "tf32"), ("gram", "tf32"), ("gram", "bf16")):
        actual = reference.filter_grad_sq(x.double(), wrong.double(), *layer)
        assert expect(x, delta, layer, route, precision).compare(actual).error_to_limit > 1, (route, precision)


@pytest.mark.simt
@pytest.mark.parametrize("route", CUDA_ROUTES)
@pytest.mark.parametrize("name", ["middle", "pointwise"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_emulated_kernels_are_within_their_limits(route, name, precision, simt):
    from _rounding import expect

    channels, filters, size, kernel, stride, padding = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x, delta = (torch.randn(1, c, size, size, generator=generator).to(dtype) for c in (channels, filters))
    layer = ((filters, channels, kernel, kernel), (stride,) * 2, (padding,) * 2, (1, 1), 1)
    runtime = Runtime(simt, 0, 0, 1, tensor_cores=True)
    settings = torch.backends.cudnn.conv
    before = settings.fp32_precision
    settings.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        actual = cuda.filter_grad_sq_cuda(x, delta, conv_geometry(x, delta, *layer), route, runtime)
    finally:
        settings.fp32_precision = before
    assert expect(x, delta, layer, route, precision).compare(actual).error_to_limit <= 0.8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_passes_for_another(value):
    from _rounding import expect

    layer = ((4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    x, delta = torch.ones(1, 3, 5, 5), torch.zeros(1, 4, 5, 5)
    expected = expect(x, delta, layer, "direct", "fp32")
    assert expected.compare(torch.zeros(1, 4)) == (0, 0)
    assert expected.compare(torch.full((1, 4), value)).error_to_limit > 1e30
