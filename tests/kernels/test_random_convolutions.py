"""Random convolutions and numbers of every kind, by every route, against unfold + einsum in float64."""

import random

import pytest
import torch
from torch.nn import functional as F

from task2vec_ext import filter_grad_sq
from task2vec_ext.kernels import reference
from task2vec_ext.kernels.geometry import conv_geometry
from task2vec_ext.kernels.routes import available_routes

CASES = 300


def layer(draw):
    """Return (input shape, layer's arguments): padding may exceed the image, windows may miss pixels."""
    while True:
        groups, channels = draw.choice([1, 1, 2, 5]), draw.choice([1, 1, 2, 5, 17, 33])
        filters = groups * draw.choice([1, 2, 7, 16, 33, 70])
        kernel = draw.choice([(3, 3), (3, 3), (3, 3), (1, 1), (2, 3), (5, 1), (7, 7)])
        size = [draw.choice([1, 2, 2, 3, 5, 8, 11]) for _ in "hw"]
        plain = draw.random() < 0.6
        stride, dilation = ([1 if plain else draw.randint(1, 3) for _ in "hw"] for _ in "sd")
        padding = draw.choice([[0, 0], [1, 1], [draw.randint(0, 9), draw.randint(0, 9)]])
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if all(s + 2 * p > r for s, p, r in zip(size, padding, reach, strict=True)):
            break
    shape = (draw.choice([1, 2]), groups * channels, *size)
    return shape, ((filters, channels, *kernel), stride, padding, dilation, groups)


def tensors(seed, dtype):
    """Return (kind of numbers, input, grad_output, the layer's arguments)."""
    draw = random.Random(seed)
    shape, arguments = layer(draw)
    weight = torch.empty(arguments[0], device="meta")
    out = F.conv2d(torch.empty(shape, device="meta"), weight, None, *arguments[1:]).shape
    generator = torch.Generator().manual_seed(seed)
    x, delta = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, out))
    kind = ("normal", "sparse", "heavy", "cancelling", "small", "large", "not finite")[seed % 7]
    if kind == "sparse":  # after ReLUs
        x, delta = x.relu(), delta * (torch.rand(out, generator=generator) < 0.2)
    elif kind == "heavy":
        x, delta = x**5, delta**5
    elif kind == "cancelling":
        x, delta = 1 + 10 ** draw.uniform(-4, -1) * x, delta - delta.mean((2, 3), keepdim=True)
    elif kind in ("small", "large"):  # inputs; the gradients' squares stay in range
        scale = 10 ** (draw.uniform(-22, -18) if kind == "small" else draw.uniform(15, 18))
        x, delta = x * scale, delta / scale
    elif kind == "not finite":
        tensor = draw.choice([x, delta])
        tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice([torch.nan, torch.inf, -torch.inf])
    return kind, x.to(dtype), delta.to(dtype), arguments


def assert_right(actual, x, delta, arguments, relative, rounding):
    """Entry by entry: `relative` of it, and `rounding` of what its gradient's terms would be without their signs."""
    x, delta = x.double(), delta.double()
    expected = reference.filter_grad_sq(x, delta, *arguments)
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    unsigned = reference.filter_grad_sq(x.abs(), delta.abs(), *arguments)
    allowed = relative * expected + rounding * (expected * unsigned).sqrt() + rounding**2 * unsigned
    error = (actual.double() - expected).abs()
    assert (error <= allowed + 1e-37)[finite].all(), (error / allowed)[finite].max()


@pytest.mark.parametrize(("dtype", "seeds"), [(torch.float32, range(CASES)), (torch.float64, range(0, CASES, 3))])
def test_every_cpu_route_is_right_entry_by_entry(dtype, seeds):
    # Measured over 200 images each: Winograd 3e-5, Gram 1.2e-4, both where terms cancel just less than is recomputed.
    relative, rounding = (1e-3, 3e-6) if dtype == torch.float32 else (1e-12, 1e-14)
    for seed in seeds:
        kind, x, delta, arguments = tensors(seed, dtype)
        for route in ("auto", *available_routes(conv_geometry(x, delta, *arguments), "cpu")):
            actual = filter_grad_sq(x, delta, *arguments, route=route)
            try:
                assert_right(actual, x, delta, arguments, relative, rounding)
            except AssertionError as error:
                pytest.fail(f"seed {seed}: {kind}, {route}, {tuple(x.shape)}, {arguments}: {error}")
