"""What follows a convolution, in one pass over its output: the launch side of ``csrc/cuda/bias_relu.cu``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .geometry import CUDA_DTYPES
from .native import SCALARS, Runtime

if TYPE_CHECKING:
    from torch import Tensor


def bias_relu(output: Tensor, bias: Tensor, other: Tensor | None = None, runtime: Runtime | None = None) -> Tensor:
    """Return ``max(output + bias[o] + other, 0)``, the same bits as by torch's own operations.

    On a GPU it is written into `output` if everything is channels-last in whole vectors of 16 bytes and of one type;
    else torch does it.

    Args:
        output: ``[N, C, H, W]``, which nothing else needs.
        bias: ``[C]``.
        other: What is added, like `output`; None: nothing.
        runtime: CUDA kernels to launch; default: those of the tensors' GPU.
    """
    if (runtime or output.is_cuda) and _fits(output, bias, other):
        result: Tensor = _BiasReLU.apply(output, bias, other, runtime or Runtime.of(output))
        return result
    output = output + bias.to(output.dtype)[:, None, None]
    return (output if other is None else output + other).relu_()


def _fits(output: Tensor, bias: Tensor, other: Tensor | None) -> bool:
    """Whether the kernel takes these."""

    def whole(tensor: Tensor) -> bool:
        aligned = tensor.data_ptr() % 16 == 0 and tensor.shape[1] * tensor.element_size() % 16 == 0
        return aligned and tensor.is_contiguous(memory_format=torch.channels_last)

    alike = other is None or (other.shape == output.shape and other.dtype == output.dtype and whole(other))
    types = output.dtype in CUDA_DTYPES and bias.dtype == torch.float32
    return types and alike and output.dim() == 4 and whole(output)


class _BiasReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, bias: Tensor, other: Tensor | None, runtime: Runtime) -> Tensor:
        filters = output.shape[1]
        rows, place = output.numel() // filters, (runtime.device, runtime.stream)
        arrays = output.data_ptr(), SCALARS[output.dtype], bias.data_ptr(), 0 if other is None else other.data_ptr()
        runtime.kernels.bias_relu(*arrays, rows, filters, *place)
        ctx.mark_dirty(output)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = torch.ops.aten.threshold_backward(grads[0], ctx.saved_tensors[0], 0)
        return grad, None, grad if ctx.needs_input_grad[2] else None, None
