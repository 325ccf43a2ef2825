"""d_sym of many pairs in native code: the launch side of ``csrc/cpu/pairwise.cpp`` and ``csrc/cuda/pairwise.cu``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .. import _C
from .native import Runtime

if TYPE_CHECKING:
    from torch import Tensor

FAST_FROM = 1 << 28
"""Pairs × filters from which a float32 pass comes first; below, float64 alone takes hundredths of a second."""

# struct SymFast (csrc/kernels.h)
_MOST_EXPONENT = 60
_LEAST_EXPONENT = -36
_DEAD_EXPONENT = -62


def sym_distances(a: Tensor, b: Tensor | None = None, runtime: Runtime | None = None) -> Tensor:
    """Return d_sym of every row of `a` and every row of `b`.

    Args:
        a: ``[A, K]`` float64 on the CPU or a GPU; finite, none negative, no row all zero.
        b: ``[B, K]`` float64 on the same device, or None: of `a` with itself, symmetric with zeros on the diagonal.
        runtime: CUDA kernels to launch; default: those of the tensors' GPU, or the CPU's loops.

    Returns:
        ``[A, B]`` float64 on the same device, exact to float64 rounding; from `FAST_FROM` on to 1e-6, except distances
        under 1e-3.
    """
    symmetric = b is None
    a = a.contiguous()
    other = a if b is None else b.contiguous()
    counts, filters = (len(a), len(other)), a.shape[1]
    out = a.new_full(counts, -1.0)  # negative: still to be computed
    if symmetric:
        out.fill_diagonal_(0)
    if a.is_cuda:
        runtime = runtime or Runtime.of(a)
    if counts[0] * counts[1] * filters >= FAST_FROM * (1 + symmetric):
        shift = _MOST_EXPONENT - int(torch.frexp(torch.maximum(a.amax(), other.amax())).exponent)
        if abs(shift) <= 1000:  # or 2**shift is no float64
            if runtime:
                _fast_cuda(a, other, shift, symmetric, out, runtime)
            else:
                _C.cpu.sym_distances_fast(
                    a.data_ptr(), other.data_ptr(), counts, filters, shift, symmetric, out.data_ptr()
                )
    exponents = [torch.frexp(rows.amax(1)).exponent.to(torch.int64) for rows in ([a] if symmetric else [a, other])]
    arrays = a.data_ptr(), other.data_ptr(), exponents[0].data_ptr(), exponents[-1].data_ptr()
    if runtime:
        place = runtime.device, runtime.stream
        runtime.kernels.sym_distances_exact(*arrays, counts, filters, symmetric, out.data_ptr(), *place)
    else:
        _C.cpu.sym_distances_exact(*arrays, counts, filters, symmetric, out.data_ptr())
    return out


class _Rows(NamedTuple):
    """``struct SymRows`` (csrc/kernels.h) of tensors, and what is needed to read the result."""

    numerators: Tensor  # [T, K] float32, rows by their mean
    others: Tensor  # [T, K]
    mean: Tensor  # [T]
    dead: Tensor  # [T, K] bool
    sure: Tensor  # [T] no entry is too small beside the largest of all
    order: Tensor  # [T]

    @classmethod
    def of(cls, values: Tensor, shift: int) -> _Rows:
        numerators = (values * 2.0**shift).to(torch.float32)
        mean, order = numerators.mean(1).sort(stable=True)
        numerators, dead = numerators[order], (values == 0)[order]
        sure = ((numerators >= 2.0**_LEAST_EXPONENT) | dead).all(1)
        return cls(numerators, numerators.clamp(min=2.0**_DEAD_EXPONENT), mean, dead, sure, order)

    def addresses(self) -> tuple[int, int, int]:
        return self.numerators.data_ptr(), self.others.data_ptr(), self.mean.data_ptr()


def _fast_cuda(a: Tensor, b: Tensor, shift: int, symmetric: bool, out: Tensor, runtime: Runtime) -> None:
    left = _Rows.of(a, shift)
    right = left if symmetric else _Rows.of(b, shift)
    live = None
    columns = left.dead.any(0) & right.dead.any(0)
    if columns.any():  # counts are exact in float32 up to 2**24 filters
        dead = left.dead[:, columns].float() @ right.dead[:, columns].float().T
        live = (a.shape[1] - dead).contiguous()
    by_mean = out[left.order][:, right.order].contiguous()
    sizes, place = ((len(a), len(b)), a.shape[1], symmetric), (runtime.device, runtime.stream)
    arrays = (0 if live is None else live.data_ptr()), by_mean.data_ptr()
    runtime.kernels.sym_distances_fast(left.addresses(), right.addresses(), *sizes, *arrays, *place)
    by_mean.masked_fill_(~(left.sure[:, None] & right.sure), -1.0)
    if symmetric:
        by_mean.fill_diagonal_(0)
    out[left.order[:, None], right.order] = by_mean
