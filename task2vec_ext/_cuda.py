"""`filter_grad_sq` on CUDA: the launch side of ``csrc/*.cu``.

The tests run this same code on CPU tensors with the emulated module in place of the compiled one, so the module and the
place to launch at are an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import _native
from ._gram import Window, gram_route

if TYPE_CHECKING:
    from torch import Tensor

    from ._geometry import ConvGeometry
    from ._routes import Route

WORKSPACE_BYTES = 256 << 20
"""What a call may allocate beyond inputs and result (a layer of which one row of one sample is larger takes that much):
enough blocks in flight for the largest GPU, small beside its memory."""

NARROW_GROUP_FILTERS = 16
"""Groups of fewer filters than this take the narrow kernel: a quarter of the direct kernel's 64-filter tile."""

_SCALARS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # enum class Scalar
_TILE = 64  # filters and columns of one tile (filter_tile.cuh)
_BLOCKS_PER_MULTIPROCESSOR = 4  # two resident (114 registers × 256 threads) and two to follow


class Runtime(NamedTuple):
    """Which compiled kernels to launch, and where."""

    kernels: Any
    device: int
    stream: int
    multiprocessors: int

    @classmethod
    def of(cls, tensor: Tensor) -> Runtime:
        """Return the kernels for the tensor's device and torch's current stream on it."""
        device = tensor.device
        return cls(
            _native.cuda_kernels(device),
            device.index,
            torch.cuda.current_stream(device).cuda_stream,
            torch.cuda.get_device_properties(device).multi_processor_count,
        )


def filter_grad_sq_cuda(
    input: Tensor, grad_output: Tensor, conv: ConvGeometry, route: Route, runtime: Runtime | None = None
) -> Tensor:
    """Return ``[N, C_out]`` float32 by the given route, for float32, float16 or bfloat16 inputs of any layout."""
    runtime = runtime or Runtime.of(input)
    if route == "direct":
        return _direct(input, grad_output, conv, runtime)

    def quadratic_form(gram: Tensor, rows: Tensor, columns: Tensor, window: Window) -> Tensor:
        n, groups, row_pixels, column_pixels = gram.shape
        gram = gram.to(torch.float32).contiguous()  # an address has no dtype
        out = gram.new_empty((n, conv.filters))
        runtime.kernels.filter_grad_sq_gram(
            gram.data_ptr(),
            rows.data_ptr(),
            rows.stride(),
            columns.data_ptr(),
            columns.stride(),
            _SCALARS[rows.dtype],
            n,
            groups,
            conv.group_filters,
            (rows[0, 0].numel(), columns[0, 0].numel()),
            (row_pixels, column_pixels),
            runtime.kernels.GramWindow(*window),
            out.data_ptr(),
            runtime.device,
            runtime.stream,
        )
        return out

    return gram_route(
        input,
        grad_output,
        conv,
        shifted=route == "shifted_gram",
        quadratic_form=quadratic_form,
        workspace_bytes=WORKSPACE_BYTES,
        dtype=torch.float32,
    )


def _direct(input: Tensor, grad_output: Tensor, conv: ConvGeometry, runtime: Runtime) -> Tensor:
    kernels = runtime.kernels
    geometry = kernels.Conv(
        conv.samples,
        conv.groups,
        conv.group_channels,
        conv.group_filters,
        conv.size,
        conv.out_size,
        conv.kernel,
        conv.stride,
        conv.padding,
        conv.dilation,
    )
    arrays = input.data_ptr(), input.stride(), grad_output.data_ptr(), grad_output.stride(), _SCALARS[input.dtype]
    place = runtime.device, runtime.stream
    if conv.group_filters < NARROW_GROUP_FILTERS:
        out = input.new_empty((conv.samples, conv.filters), dtype=torch.float32)
        kernels.filter_grad_sq_narrow(*arrays, geometry, out.data_ptr(), *place)
        return out
    splits = _splits(conv, runtime.multiprocessors)
    partial = input.new_empty((conv.samples, splits, conv.filters), dtype=torch.float32)
    kernels.filter_grad_sq_direct(*arrays, geometry, splits, partial.data_ptr(), *place)
    return partial.sum(1)


def _splits(conv: ConvGeometry, multiprocessors: int) -> int:
    """Blocks that share the columns of one filter tile: as many as it takes to fill the GPU, no more than columns."""
    blocks = max(1, conv.samples * conv.groups * -(-conv.group_filters // _TILE))
    wanted = -(-multiprocessors * _BLOCKS_PER_MULTIPROCESSOR // blocks)
    return max(1, min(wanted, -(-conv.patch_size // _TILE)))
