"""The native side of `noise`: patch norms, and the four loops that add noise or draw it again for a gradient.

Each runs the CPU's loops or, given a `Runtime`, launches CUDA kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from .. import _C
from .geometry import CPU_DTYPES, CUDA_DTYPES, check_dtype
from .native import SCALARS

if TYPE_CHECKING:
    from torch import Tensor

    from .geometry import ConvGeometry
    from .native import Runtime

WEIGHT_STREAM = 2**32 - 1
"""The layer number that `add_weight_noise` draws for."""


def patch_norm(input: Tensor, conv: ConvGeometry, epsilon: float) -> Tensor:
    """Return √B (see `local_noise`), ``[N, groups, H_out, W_out]``, float64 for float64 and float32 otherwise."""
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    squares = _SumOfSquares.apply(input.unflatten(1, (conv.groups, conv.group_channels)), wide)
    squares = squares + conv.group_channels * epsilon
    if conv.dilation == (1, 1):
        padding = conv.padding
        if any(2 * pad > size for pad, size in zip(padding, conv.kernel, strict=True)):  # more than a pool takes
            rows, columns = padding
            squares, padding = F.pad(squares, (columns, columns, rows, rows)), (0, 0)
        box = F.avg_pool2d(squares, conv.kernel, conv.stride, padding, divisor_override=1)
    else:  # in float64, which no GPU rounds to TF32
        ones = squares.new_ones((conv.groups, 1, *conv.kernel), dtype=torch.float64)
        box = F.conv2d(squares.double(), ones, None, conv.stride, conv.padding, conv.dilation, conv.groups).to(wide)
    return box.clamp(min=torch.finfo(wide).tiny).sqrt()  # a patch of padding alone: no noise, and a gradient of 0


class _SumOfSquares(torch.autograd.Function):
    """``[N, G, C, H, W] → [N, G, H, W]``, one read forwards and one write backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wide: torch.dtype) -> Tensor:
        ctx.save_for_backward(x)
        if x.is_cuda or x.stride(2) == 1:  # channels-last: no square is written
            return torch.linalg.vector_norm(x, dim=2, dtype=wide).square()
        return x.to(wide).square().sum(2)  # 10 times faster than that, channels-first on the CPU

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return (x * (2 * grads[0]).unsqueeze(2)).to(x.dtype), None  # 1/√B is too large for 16 bits where x is small


def add_noise(
    output: Tensor, norm: Tensor, sigma: Tensor, seed: int, layer: int, step: int, runtime: Runtime | None = None
) -> Tensor:
    """Return ``output[n,o,q] + σ[o]·norm[n,(o,)q]·ε[n,o,q]``."""
    check_dtype("local_noise", output, CPU_DTYPES if runtime is None else CUDA_DTYPES)
    output, norm, shape = dense(output, norm)
    sigma, out = sigma.contiguous(), torch.empty_like(output)
    kernels, place = _kernels(runtime)
    arrays = output.data_ptr(), SCALARS[output.dtype], norm.data_ptr(), sigma.data_ptr()
    kernels.local_noise(*arrays, shape, (seed, layer, step), out.data_ptr(), *place)
    return out


def add_noise_backward(
    grad: Tensor,
    norm: Tensor,
    sigma: Tensor,
    seed: int,
    layer: int,
    step: int,
    norm_too: bool,
    runtime: Runtime | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients to σ, ``[C]``, and to the norm, like `norm` (empty unless `norm_too`)."""
    grad, norm, shape = dense(grad, norm)
    sigma = sigma.contiguous()
    kernels, place = _kernels(runtime)
    samples, filters, positions, _, of_filter = shape
    sums = norm.new_empty((samples, -(-positions // kernels.noise_tile), filters))
    if not norm_too:
        grad_norm = norm.new_empty(0)
    elif of_filter or runtime is None:
        grad_norm = torch.empty_like(norm)
    else:
        grad_norm = norm.new_empty((-(-filters // kernels.noise_filters), *norm.shape))
    arrays = grad.data_ptr(), SCALARS[grad.dtype], norm.data_ptr(), sigma.data_ptr()
    to_norm = grad_norm.data_ptr() if norm_too else 0
    kernels.local_noise_backward(*arrays, shape, (seed, layer, step), sums.data_ptr(), to_norm, *place)
    if norm_too and grad_norm.dim() > norm.dim():
        grad_norm = grad_norm.sum(0)
    return sums.sum((0, 1), dtype=torch.float64).to(sigma.dtype), grad_norm


def add_weight_noise(
    weight: Tensor, sigma: Tensor, starts: Tensor, seed: int, step: int, runtime: Runtime | None = None
) -> Tensor:
    """Return ``w[o,j] + σ_o·ε[o,j]``."""
    check_dtype("weight_noise", weight, CPU_DTYPES if runtime is None else (torch.float32,))
    if starts.device.type == "cpu" and not (
        starts[0] == 0 and starts[-1] == len(weight) and bool((starts.diff() >= 0).all())
    ):
        raise ValueError(f"weight_noise: expected starts to ascend from 0 to {len(weight)}, got {starts.tolist()}.")
    weight, sigma, starts = weight.contiguous(), sigma.contiguous(), starts.contiguous()
    out = torch.empty_like(weight)
    kernels, place = _kernels(runtime)
    arrays = weight.data_ptr(), SCALARS[weight.dtype], sigma.data_ptr(), starts.data_ptr()
    kernels.weight_noise(*arrays, len(sigma), (seed, WEIGHT_STREAM, step), out.data_ptr(), *place)
    return out


def weight_noise_backward(grad: Tensor, starts: Tensor, seed: int, step: int, runtime: Runtime | None = None) -> Tensor:
    """Return the gradient to σ, ``[K]``."""
    grad, starts, sums = grad.contiguous(), starts.contiguous(), grad.new_empty(len(starts) - 1)
    kernels, place = _kernels(runtime)
    arrays = grad.data_ptr(), SCALARS[grad.dtype], starts.data_ptr()
    kernels.weight_noise_backward(*arrays, len(sums), (seed, WEIGHT_STREAM, step), sums.data_ptr(), *place)
    return sums


def dense(output: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, tuple[int, int, int, bool, bool]]:
    """Return both as the loops read them, and the fields of ``struct NoiseShape`` (csrc/kernels.h)."""
    last = output.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    of_filter = norm.shape[1] == output.shape[1] > 1
    shape = (output.shape[0], output.shape[1], output.shape[2] * output.shape[3], last, of_filter)
    return output.contiguous(memory_format=layout), norm.contiguous(memory_format=layout), shape


def _kernels(runtime: Runtime | None) -> tuple[Any, tuple[int, ...]]:
    """Return the functions to call, and the arguments that say where."""
    return (_C.cpu, ()) if runtime is None else (runtime.kernels, (runtime.device, runtime.stream))
