"""The geometry of one convolution, and the checks that everything behind the operator relies on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class ConvGeometry:
    """Sizes of one Conv2d and its batch; pairs are (height, width)."""

    samples: int
    groups: int
    channels: int
    filters: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def group_channels(self) -> int:
        """Input channels of one group."""
        return self.channels // self.groups

    @property
    def group_filters(self) -> int:
        """Filters of one group."""
        return self.filters // self.groups

    @property
    def patch_size(self) -> int:
        """P: weights of one filter."""
        return self.group_channels * self.kernel[0] * self.kernel[1]

    @property
    def positions(self) -> int:
        """Q: output locations."""
        return self.out_size[0] * self.out_size[1]

    def for_kernels(self) -> tuple[Any, ...]:
        """Return the arguments of the native module's ``Conv`` (csrc/kernels.h)."""
        counts = self.samples, self.groups, self.group_channels, self.group_filters
        return *counts, self.size, self.out_size, self.kernel, self.stride, self.padding, self.dilation

    def span(self, axis: int, outputs: int) -> int:
        """Padded input rows (axis 0) or columns (axis 1) that `outputs` consecutive output rows or columns read."""
        return (outputs - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1


_LARGEST = 2**31 - 1  # the kernels count in 32 bits inside one sample


def _pair(who: str, name: str, value: Sequence[int], least: int) -> tuple[int, int]:
    if len(value) != 2 or not all(least <= v <= _LARGEST for v in value):
        raise ValueError(f"{who}: expected {name} as two integers from {least} to 2³¹ − 1, got {tuple(value)}.")
    return value[0], value[1]


def conv_geometry(
    input: Tensor,
    grad_output: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    who: str = "filter_grad_sq",
    second: str = "grad_output",
) -> ConvGeometry:
    """Check that the arguments belong to one Conv2d and return its sizes.

    Args:
        input: ``[N, C_in, H, W]``.
        grad_output: ``[N, C_out, H_out, W_out]``.
        weight_shape: ``(C_out, C_in / groups, kH, kW)``.
        stride: two integers.
        padding: two integers, zeros on both sides.
        dilation: two integers.
        groups: number of groups.
        who: the operator that asks, for messages.
        second: what it calls its `grad_output`.

    Returns:
        The sizes, all consistent with each other.

    Raises:
        ValueError: If shapes or parameters do not belong together.
        TypeError: If the dtypes differ.
    """
    if input.dim() != 4 or grad_output.dim() != 4 or len(weight_shape) != 4:
        raise ValueError(
            f"{who}: expected input [N, C_in, H, W], {second} [N, C_out, H_out, W_out] and a weight_shape "
            f"of 4 numbers; got {list(input.shape)}, {list(grad_output.shape)} and {list(weight_shape)}."
        )
    if input.dtype != grad_output.dtype:
        raise TypeError(
            f"{who}: expected input and {second} of one dtype, got {input.dtype} and {grad_output.dtype}; "
            "convert one of them."
        )
    if input.device != grad_output.device:
        raise ValueError(
            f"{who}: expected input and {second} on one device, got {input.device} and {grad_output.device}."
        )
    samples, channels, height, width = input.shape
    filters, group_channels, *kernel_size = weight_shape
    kernel = _pair(who, "kernel size", kernel_size, 1)
    step, pad, gap = (
        _pair(who, "stride", stride, 1),
        _pair(who, "padding", padding, 0),
        _pair(who, "dilation", dilation, 1),
    )
    if groups < 1 or filters < 1 or filters % groups or channels < 1 or channels != group_channels * groups:
        raise ValueError(
            f"{who}: expected a weight of shape [C_out, {channels} / groups, kH, kW] with C_out a multiple of "
            f"groups for input {list(input.shape)}; got weight_shape {list(weight_shape)} and groups {groups}."
        )
    out_height = (height + 2 * pad[0] - gap[0] * (kernel[0] - 1) - 1) // step[0] + 1
    out_width = (width + 2 * pad[1] - gap[1] * (kernel[1] - 1) - 1) // step[1] + 1
    expected = (samples, filters, out_height, out_width)
    if tuple(grad_output.shape) != expected or min(height, width, out_height, out_width) < 1:
        raise ValueError(
            f"{who}: expected {second} of shape {list(expected)} for input {list(input.shape)}, "
            f"kernel_size {kernel}, stride {step}, padding {pad}, dilation {gap}; got {list(grad_output.shape)}."
        )
    conv = ConvGeometry(
        samples, groups, channels, filters, (height, width), (out_height, out_width), kernel, step, pad, gap
    )
    if max(conv.positions, conv.patch_size, height * width) > _LARGEST:
        raise ValueError(f"{who}: expected fewer than 2³¹ numbers in one patch or map, got {conv}.")
    return conv
