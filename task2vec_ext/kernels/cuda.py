"""`filter_grad_sq` on CUDA: the launch side of ``csrc/cuda/filter_grad_sq_*.cu``.

The tests run this code on CPU tensors with an emulated module, so the kernels and where to launch them are an argument.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .gram import gram_route
from .native import SCALARS, Runtime
from .routes import NARROW_GROUP_FILTERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from .geometry import ConvGeometry
    from .gram import Window
    from .routes import Route

WORKSPACE_BYTES = 256 << 20
"""Bytes that a call may allocate beyond inputs and result, unless one row of one sample needs more: enough blocks in
flight for the largest GPU, small beside its memory."""

_TILE = 64  # filters and columns of one float32 tile (filter_tile.cuh)
_BLOCKS_PER_MULTIPROCESSOR = 4  # one or two resident (registers), the rest to follow


def rounds_operands(dtype: torch.dtype) -> bool:
    """Whether products may be those of tensor cores: always for 16-bit inputs; float32 as torch's own convolutions.

    torch itself reads `torch.backends.cudnn.conv.fp32_precision` before it computes a convolution's weight gradient.
    That setting starts as ``"tf32"``, follows the older ``cudnn.allow_tf32`` (which cannot be read once settings
    differ) and inherits from ``cudnn.fp32_precision`` and ``torch.backends.fp32_precision``; ``"none"`` is full
    precision.
    """
    backends: Any = torch.backends  # not all of it is annotated
    return dtype != torch.float32 or backends.cudnn.conv.fp32_precision == "tf32"


def filter_grad_sq_cuda(
    input: Tensor, grad_output: Tensor, conv: ConvGeometry, route: Route, runtime: Runtime | None = None
) -> Tensor:
    """Return ``[N, C_out]`` float32 by the given route, for float32, float16 or bfloat16 inputs of any layout."""
    runtime = runtime or Runtime.of(input)
    tensor_cores = runtime.tensor_cores and rounds_operands(input.dtype)
    if route == "direct":
        return _direct(input, grad_output, conv, runtime, tensor_cores)

    def quadratic_form(gram: Tensor, rows: Tensor, columns: Tensor, window: Window) -> Tensor:
        n, groups, row_pixels, column_pixels = gram.shape
        positions, place = (rows[0, 0].numel(), columns[0, 0].numel()), (runtime.device, runtime.stream)
        a, pitch = _gather(gram, positions, (row_pixels, column_pixels), window, runtime)
        out = gram.new_empty((n, conv.filters))
        arrays = rows.data_ptr(), rows.stride(), columns.data_ptr(), columns.stride(), SCALARS[rows.dtype]
        counts, sizes = (n, groups, conv.group_filters), (positions, pitch, window.out_width)
        runtime.kernels.filter_grad_sq_gram(
            a.data_ptr(), *arrays, *counts, *sizes, tensor_cores, out.data_ptr(), *place
        )
        return out

    return gram_route(
        input,
        grad_output,
        conv,
        shifted=route == "shifted_gram",
        gram_matrix=partial(_gram_matrix, precision="tf32" if tensor_cores else "ieee"),
        quadratic_form=quadratic_form,
        workspace_bytes=WORKSPACE_BYTES,
        dtype=input.dtype if tensor_cores else torch.float32,
    )


def _gather(
    gram: Tensor, positions: tuple[int, int], pixels: tuple[int, int], window: Window, runtime: Runtime
) -> tuple[Tensor, int]:
    """Return A of the quadratic form ``[n, groups, positions of I, pitch]``, its rows whole vectors, and the pitch."""
    pitch = -(-positions[1] // 4) * 4
    if window.kernel == window.stride == (1, 1) and pitch == pixels[1]:
        return gram, pitch  # is A
    n, groups = gram.shape[:2]
    a = gram.new_empty((n, groups, positions[0], pitch))
    gather, place = runtime.kernels.filter_grad_sq_gather, (runtime.device, runtime.stream)
    gather(gram.data_ptr(), n * groups, positions, pixels, window, pitch, a.data_ptr(), *place)
    return a, pitch


def _gram_matrix(left: Tensor, right: Tensor, precision: str) -> Tensor:
    """Return leftᵀ·right as a contiguous float32 tensor, which is what the kernel expects at the address it gets."""
    left = left.transpose(-1, -2)
    if left.dtype == torch.float32:
        with _matmul_precision(left.device.type, precision):
            return (left @ right).contiguous()
    if left.device.type == "cpu":  # the emulated kernels; torch has this product on CUDA alone
        return left.float() @ right.float()
    batch, rows, columns = left.shape[:2], left.shape[2], right.shape[3]
    product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
    return product.reshape(*batch, rows, columns)


@contextmanager
def _matmul_precision(device_type: str, precision: str) -> Iterator[None]:
    """Set the precision of float32 matrix products inside the block, and restore the user's own afterwards."""
    # Per backend: torch's older, global switch raises once a user has touched one of these.
    backends: Any = torch.backends  # not all of it is annotated
    settings = backends.cuda.matmul if device_type == "cuda" else backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before


def _direct(input: Tensor, grad_output: Tensor, conv: ConvGeometry, runtime: Runtime, tensor_cores: bool) -> Tensor:
    kernels = runtime.kernels
    geometry = conv.for_kernels()
    scalar = SCALARS[input.dtype]
    arrays = input.data_ptr(), input.stride(), grad_output.data_ptr(), grad_output.stride(), scalar
    place = runtime.device, runtime.stream
    if conv.group_filters < NARROW_GROUP_FILTERS:
        out = input.new_empty((conv.samples, conv.filters), dtype=torch.float32)
        kernels.filter_grad_sq_narrow(*arrays, geometry, out.data_ptr(), *place)
        return out
    launch = kernels.filter_grad_sq_direct
    tiles = -(-conv.group_filters // _TILE), -(-conv.patch_size // _TILE)
    if tensor_cores:
        mma_tiles = kernels.filter_grad_sq_direct_mma_tiles(scalar, geometry, runtime.device)
        if all(mma_tiles):
            launch, tiles = kernels.filter_grad_sq_direct_mma, (mma_tiles[0], mma_tiles[1])
    splits = _splits(conv.samples * conv.groups * tiles[0], tiles[1], runtime.multiprocessors)
    sums = input.new_empty((conv.samples, splits, conv.filters), dtype=torch.float32)
    launch(*arrays, geometry, splits, sums.data_ptr(), *place)
    return sums.sum(1)


def _splits(blocks: int, column_tiles: int, multiprocessors: int) -> int:
    """Return how many blocks share the column tiles of one filter tile: enough to fill the GPU, none without a tile."""
    wanted = -(-multiprocessors * _BLOCKS_PER_MULTIPROCESSOR // blocks)
    return max(1, min(wanted, column_tiles))
