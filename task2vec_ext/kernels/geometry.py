"""The geometry of one convolution, and the checks that everything behind the operator relies on."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

CPU_DTYPES = torch.float32, torch.float64
CUDA_DTYPES = torch.float32, torch.float16, torch.bfloat16

_LARGEST = 2**31 - 1  # the kernels count in 32 bits inside one sample
_Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """Sizes of one Conv2d and its batch; pairs are (height, width)."""

    samples: int
    groups: int
    channels: int
    filters: int
    size: _Pair
    out_size: _Pair
    kernel: _Pair
    stride: _Pair
    padding: _Pair
    dilation: _Pair

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

    def for_kernels(self) -> tuple[int, int, int, int, _Pair, _Pair, _Pair, _Pair, _Pair, _Pair]:
        """Return the fields of ``struct Conv`` (csrc/kernels.h)."""
        counts = self.samples, self.groups, self.group_channels, self.group_filters
        return *counts, self.size, self.out_size, self.kernel, self.stride, self.padding, self.dilation

    def span(self, axis: int, outputs: int) -> int:
        """Padded input rows (axis 0) or columns (axis 1) that `outputs` consecutive output rows or columns read."""
        return (outputs - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1


def has_tangent(*tensors: Tensor) -> bool:
    """Whether forward-mode autodiff follows a tensor; an operator without a formula would return zeros as tangent."""
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def check_dtype(who: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raise a TypeError unless the tensor's dtype is allowed; `who` is the operator that asks."""
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(
            f"{who}: expected {names} tensors on {tensor.device.type}, got {tensor.dtype}; convert them first."
        )


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
    """Return the sizes of a Conv2d, after checking that the arguments belong to one.

    `who` is the operator that asks, and `second` what it calls its `grad_output`, for messages.
    """
    if input.dim() != 4 or grad_output.dim() != 4 or len(weight_shape) != 4:
        raise ValueError(
            f"{who}: expected input [N, C_in, H, W], {second} [N, C_out, H_out, W_out] and a weight_shape "
            f"of 4 numbers; got {list(input.shape)}, {list(grad_output.shape)} and {list(weight_shape)}."
        )
    if input.dtype != grad_output.dtype:
        raise TypeError(
            f"{who}: expected input and {second} of one dtype, got {input.dtype} and {grad_output.dtype}; convert one."
        )
    if input.device != grad_output.device:
        raise ValueError(
            f"{who}: expected input and {second} on one device, got {input.device} and {grad_output.device}."
        )
    samples, channels, height, width = input.shape
    filters, group_channels, *kernel_size = weight_shape
    kernel, step = _pair(who, "kernel size", kernel_size, 1), _pair(who, "stride", stride, 1)
    pad, gap = _pair(who, "padding", padding, 0), _pair(who, "dilation", dilation, 1)
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


def as_convolution(
    input: Tensor,
    grad_output: Tensor,
    weight_shape: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    who: str = "filter_grad_sq",
    second: str = "grad_output",
) -> tuple[Tensor, Tensor, list[int], list[int], list[int], list[int]]:
    """Return the first six arguments as those of a Conv2d with numeric padding; a Linear layer becomes a 1×1 one."""
    if len(weight_shape) == 2:  # over the positions between the first and the last axis
        features_out, features_in = weight_shape
        if (
            input.dim() < 2
            or input.shape[:-1] != grad_output.shape[:-1]
            or (input.shape[-1], grad_output.shape[-1]) != (features_in, features_out)
        ):
            raise ValueError(
                f"{who}: expected input [N, …, {features_in}] and {second} [N, …, {features_out}] for a Linear "
                f"layer of weight_shape {list(weight_shape)}; got {list(input.shape)} and {list(grad_output.shape)}."
            )
        input, grad_output, weight_shape = _as_image(input), _as_image(grad_output), (*weight_shape, 1, 1)
    strides, dilations = _two(who, "stride", stride), _two(who, "dilation", dilation)
    if isinstance(padding, str):
        input, paddings = string_padding(input, padding, weight_shape, strides, dilations, who)
    else:
        paddings = _two(who, "padding", padding)
    return input, grad_output, list(weight_shape), strides, paddings, dilations


def _two(who: str, name: str, value: int | Sequence[int]) -> list[int]:
    try:
        numbers = [index(v) for v in value] if isinstance(value, (tuple, list)) else [index(value)] * 2  # type: ignore[arg-type]  # or a TypeError
    except TypeError:
        raise TypeError(f"{who}: expected {name} as an integer or two, got {value!r}.") from None
    if len(numbers) != 2:
        raise ValueError(f"{who}: expected {name} as two integers, got {tuple(numbers)}.")
    return numbers


def _as_image(tensor: Tensor) -> Tensor:
    """Return a Linear layer's ``[N, …, D]`` as the image ``[N, D, T, 1]`` of a pointwise convolution."""
    positions = tensor.flatten(1, -2) if tensor.dim() > 2 else tensor.unsqueeze(1)  # [N, T, D]
    return positions.transpose(1, 2).unsqueeze(-1)


def string_padding(
    input: Tensor,
    padding: str,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    who: str = "filter_grad_sq",
) -> tuple[Tensor, list[int]]:
    """Return the input and ``"same"`` or ``"valid"`` as two integers; an odd total of padding is added to the input."""
    if padding == "valid" or len(weight_shape) != 4:  # other shapes are refused together
        return input, [0, 0]
    if padding != "same" or any(step != 1 for step in stride):
        raise ValueError(
            f"{who}: expected padding as integers, 'valid', or 'same' with stride 1; got {padding!r} with "
            f"stride {tuple(stride)}."
        )
    total = [gap * (size - 1) for gap, size in zip(dilation, weight_shape[2:], strict=True)]
    odd = [pad % 2 for pad in total]
    # As Conv2d does: the extra row and column of an even span go below and to the right.
    return (F.pad(input, (0, odd[1], 0, odd[0])) if any(odd) else input), [pad // 2 for pad in total]
