"""The convolutions every test of the operator runs over, and how near is near enough."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from task2vec_ext.kernels import geometry
from task2vec_ext.kernels.geometry import ConvGeometry, conv_geometry
from task2vec_ext.kernels.routes import available_routes


@dataclass(frozen=True)
class Case:
    """One Conv2d and the batch it sees."""

    name: str
    channels: int
    filters: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    samples: int = 2
    options: dict = field(default_factory=dict)

    def conv(self) -> nn.Conv2d:
        torch.manual_seed(0)
        return nn.Conv2d(self.channels, self.filters, self.kernel, bias=False, **self.options)

    def tensors(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Return (input, grad_output), standard normal; numbers made on a GPU are others than the CPU's."""
        x = torch.empty(self.samples, self.channels, *self.size, device="meta")
        out = self.conv().to("meta")(x)
        generator = torch.Generator(device).manual_seed(1)
        x, delta = (
            torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
            for shape in (x.shape, out.shape)
        )
        return x.to(dtype), delta.to(dtype)

    def geometry(self) -> ConvGeometry:
        x, delta = self.tensors()
        arguments = self.arguments()
        if isinstance(arguments["padding"], str):
            x, arguments["padding"] = geometry.string_padding(
                x, *(arguments[key] for key in ("padding", "weight_shape", "stride", "dilation"))
            )
        return conv_geometry(x, delta, **arguments)

    def arguments(self) -> dict:
        conv = self.conv()
        return {
            "weight_shape": tuple(conv.weight.shape),
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
        }


CASES = [
    Case("conv3x3-p1", 5, 6, (7, 7), (3, 3), options={"padding": 1}),
    Case("conv3x3-s2-p1-odd", 3, 4, (9, 7), (3, 3), options={"padding": 1, "stride": 2}),
    Case("conv7x7-s2-p3-stem", 3, 5, (13, 15), (7, 7), options={"padding": 3, "stride": 2}),
    Case("conv1x1", 6, 3, (5, 4), (1, 1)),
    Case("conv1x1-s2", 6, 3, (5, 5), (1, 1), options={"stride": 2}),
    Case("conv1x1-p1-strips-of-padding", 2, 3, (3, 3), (1, 1), options={"padding": 2}),
    Case("conv3x3-dilated", 2, 3, (9, 8), (3, 3), options={"padding": 2, "dilation": 2}),
    Case("conv3x2-asymmetric", 3, 2, (8, 6), (3, 2), options={"padding": (2, 0), "stride": (1, 2), "dilation": (2, 1)}),
    Case("conv3x3-p1-g3", 6, 9, (6, 5), (3, 3), options={"padding": 1, "groups": 3}),
    Case("depthwise3x3", 5, 5, (6, 6), (3, 3), options={"padding": 1, "groups": 5}),
    Case("depthwise3x3-multiplier2-s2", 4, 8, (7, 7), (3, 3), options={"padding": 1, "groups": 4, "stride": 2}),
    Case("one-filter", 3, 1, (5, 5), (3, 3)),
    Case("one-pixel", 4, 3, (1, 1), (1, 1)),
    Case("one-pixel-3x3", 4, 3, (1, 1), (3, 3), options={"padding": 1}),
    Case("one-sample", 2, 3, (4, 4), (3, 3), samples=1),
    Case("same-odd-kernel", 2, 3, (5, 6), (3, 5), options={"padding": "same"}),
    Case("same-even-kernel-dilated", 2, 3, (6, 7), (2, 4), options={"padding": "same", "dilation": (1, 3)}),
    Case("valid", 2, 3, (5, 6), (3, 3), options={"padding": "valid", "stride": 2}),
    Case("many-filters-many-columns", 9, 70, (5, 5), (3, 3), options={"padding": 1}),
    Case("many-filters-in-groups", 4, 140, (5, 5), (3, 3), options={"padding": 1, "groups": 2}),
    Case("unused-last-rows", 2, 3, (8, 8), (3, 3), options={"stride": 3}),
]
# What the CPU's own loops must cut into blocks: channels, filters, tiles, strips of the Gram matrix.
LARGE_CASES = [
    Case("many-channels-and-filters", 70, 67, (9, 6), (3, 3), options={"padding": 1}),
    Case("many-tiles", 65, 3, (36, 37), (3, 3), samples=1, options={"padding": 2}),
    Case("many-strips", 2, 3, (64, 32), (3, 3), options={"padding": 1}),
    Case("many-strips-in-phases", 2, 35, (90, 70), (3, 2), samples=1, options={"padding": 1, "stride": 2}),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def every_case_and_route(device_type: str, cases: Sequence[Case] = CASES) -> pytest.MarkDecorator:
    """Parametrize `case` and `route` with what the routes of a device can do."""
    return pytest.mark.parametrize(
        ("case", "route"),
        [
            pytest.param(case, route, id=f"{case.name}-{route}")
            for case in cases
            for route in available_routes(case.geometry(), device_type)
        ],
    )


# Relative to the largest value of the result. Worst measured over all cases and routes, times a margin of about 5.
TOLERANCE = {
    torch.float64: 1e-13,  # measured 1.2e-15 … 6e-15, sums of at most a few thousand products
    torch.float32: 3e-6,  # measured 5e-7
    # The inputs are rounded before both computations; accumulation is float32, so the same bound holds.
    torch.float16: 3e-6,
    torch.bfloat16: 3e-6,
}

# Wide enough for vectors of 16 bytes, and ragged: what the tensor-core tiles (csrc/filter_tile_mma.cuh) are cut from.
TENSOR_CORE_CASES = [
    Case("conv3x3-p1-wide", 16, 24, (12, 13), (3, 3), options={"padding": 1}),
    Case("conv3x3-s2-p1-wide", 16, 24, (13, 12), (3, 3), options={"padding": 1, "stride": 2}),
    Case("conv3x3-two-tiles-of-channels-and-filters", 72, 80, (13, 11), (3, 3), options={"padding": 1}),
    Case("conv3x3-many-slices", 8, 16, (24, 31), (3, 3), samples=1, options={"padding": 1}),
    Case("conv3x3-dilated-wide", 8, 16, (12, 11), (3, 3), options={"padding": 3, "dilation": 3}),
    Case("conv3x3-g2-wide", 32, 48, (6, 7), (3, 3), options={"padding": 1, "groups": 2}),
    Case("conv5x5-three-tiles-of-taps", 8, 16, (9, 9), (5, 5), options={"padding": 2}),
    Case("conv7x7-s2-p3-wide", 8, 16, (17, 15), (7, 7), options={"padding": 3, "stride": 2}),
    Case("conv1x11-taps-in-one-row", 8, 16, (5, 14), (1, 11), options={"padding": (0, 4)}),
    Case("conv11x1-taps-in-one-column", 8, 16, (14, 5), (11, 1), options={"padding": (4, 0)}),
    Case("conv2x2-s3-gaps", 8, 16, (14, 13), (2, 2), options={"stride": 3}),
    Case("conv1x1-two-tiles-of-channels-and-filters", 136, 144, (7, 9), (1, 1)),
    Case("conv1x1-s2-wide", 16, 136, (15, 13), (1, 1), options={"stride": 2}),
    Case("conv7x7-s2-p3-first-layer", 3, 72, (29, 38), (7, 7), options={"padding": 3, "stride": 2}),
    Case("conv5x5-two-tiles-of-the-patch", 7, 16, (9, 10), (5, 5), options={"padding": 2, "dilation": 2}),
    Case("conv3x3-g2-few-channels", 8, 48, (7, 6), (3, 3), options={"padding": 1, "groups": 2}),
    Case("conv1x1-few-channels", 5, 24, (6, 7), (1, 1)),
    Case("conv1x1-long-rows", 16, 16, (2, 150), (1, 1), samples=1),
]


def tolerance(dtype: torch.dtype, route: str, tensor_cores: bool) -> float:
    """How near the CUDA kernels come to float64 with the same inputs, relative to the largest value of the result."""
    if not tensor_cores:
        return TOLERANCE[dtype]
    if dtype == torch.float32:
        # Each operand is off by up to 2^-11 (10 bits behind the point, to the nearest), a product by 2^-10, a
        # square by 2^-9. Measured 9e-4.
        return 2.0**-9
    # The direct route multiplies 16-bit numbers exactly, but a tensor core cuts off what it adds up instead of rounding
    # it: 2^-23 for each of up to 50 steps, doubled by the square. Not measured on a GPU; the emulation rounds.
    # The Gram routes round A to TF32: 2^-11 and a margin of 2, for entries of A that cancel. Measured 3e-4.
    return 2.0**-15 if route == "direct" else 2.0**-10


def assert_near(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Assert that no entry is off by more than `relative` times the largest expected entry."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert torch.isfinite(actual).all(), "not finite"
    if expected.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs()
    scale = expected.double().abs().max().clamp(min=1e-300)
    worst = int(error.argmax())
    assert error.max() <= relative * scale, (
        f"entry {worst}: {actual.flatten()[worst]} instead of {expected.flatten()[worst]}, "
        f"relative error {float(error.max() / scale):.2e} > {relative:.0e}"
    )


def oracle(case: Case) -> Tensor:
    """Autograd, one sample at a time, in float64."""
    conv = case.conv().double()
    x, delta = case.tensors()
    rows = []
    for n in range(case.samples):
        (gradient,) = torch.autograd.grad(conv(x[n : n + 1]), conv.weight, delta[n : n + 1])
        rows.append(gradient.flatten(1).square().sum(1))
    return torch.stack(rows)
