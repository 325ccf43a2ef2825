"""The two Gram routes: ‖g_o‖² = δ_o A δ_oᵀ with A the Gram matrix of the patches, without forming any gradient.

Gram route: A = UᵀU, U the unfolded input ``[P, Q]``. Shifted Gram: A[q,q'] = Σ_r G[q+r, q'+r], the sum over the conv's
window of the Gram matrix G of single *pixels*, about kH·kW times cheaper to form.

Both are one computation here. The output is cut into strips of rows; for a pair of strips (I, J) `_columns` gives the
matrices whose product is a block of UᵀU or of G, and `quadratic_form` adds up δ_I A_IJ δ_Jᵀ. A is symmetric: only J ≥ I
is computed. Strips and batches are as large as the workspace allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from .geometry import ConvGeometry


class Window(NamedTuple):
    """How a block of A is gathered from a block of the Gram matrix; pairs are (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    gram_width: int  # Gram columns in one row of a strip
    out_width: int  # output locations in one row of a strip


QuadraticForm: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Window], Tensor]"
"""(gram ``[n, groups, M_I, M_J]``, rows ``[n, C_out, h_I, W_out]``, columns ``[n, C_out, h_J, W_out]``, window) → ``[n,
C_out]``: Σ over q in I, q' in J of δ[o,q]·A[q,q']·δ[o,q'], A gathered from gram through the window."""

GramMatrix: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""(left ``[n, groups, D, M_I]``, right ``[n, groups, D, M_J]``) → leftᵀ·right ``[n, groups, M_I, M_J]``."""


def gram_route(
    input: Tensor,
    grad_output: Tensor,
    conv: ConvGeometry,
    *,
    shifted: bool,
    gram_matrix: GramMatrix,
    quadratic_form: QuadraticForm,
    workspace_bytes: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``[N, C_out]`` float32 by the Gram route or, if `shifted`, by the shifted one, of matrices in `dtype`."""
    window = Window((1, 1), (1, 1), (1, 1), conv.out_size[1], conv.out_size[1])
    if shifted:
        window = Window(conv.kernel, conv.stride, conv.dilation, conv.span(1, conv.out_size[1]), conv.out_size[1])
    samples, height = _largest_block(conv, shifted, workspace_bytes // torch.float32.itemsize)
    out = input.new_zeros((conv.samples, conv.filters), dtype=torch.float32)

    def add_pair(batch: slice, left: Tensor, rows: slice, columns: slice) -> None:
        # A function of its own, so that one pair's matrices are gone before the next one's are made.
        right = left if columns == rows else _columns(input[batch], conv, columns, shifted, dtype)
        gram = gram_matrix(left, right)  # [n, groups, M_I, M_J]
        form = quadratic_form(gram, grad_output[batch, :, rows], grad_output[batch, :, columns], window)
        out[batch] += form if columns == rows else 2 * form

    for first in range(0, conv.samples, samples):
        batch = slice(first, first + samples)
        for rows in _strips(conv.out_size[0], height, 0):
            left = _columns(input[batch], conv, rows, shifted, dtype)
            for columns in _strips(conv.out_size[0], height, rows.start):
                add_pair(batch, left, rows, columns)
            del left
    # A is positive semi-definite, but rounding may leave a form of zero slightly negative.
    return out.clamp_(min=0)


def _strips(rows: int, height: int, start: int) -> Iterator[slice]:
    for first in range(start, rows, height):
        yield slice(first, min(first + height, rows))


def _columns(input: Tensor, conv: ConvGeometry, rows: slice, shifted: bool, dtype: torch.dtype) -> Tensor:
    """Return the matrix whose columns the Gram matrix compares, for output rows `rows`: ``[n, groups, D, M]``.

    Shifted: D = group_channels, M = padded pixels that the strip reads. Otherwise D = P, M = the strip's locations.
    """
    top = rows.start * conv.stride[0] - conv.padding[0]
    bottom = top + conv.span(0, rows.stop - rows.start)
    right = conv.span(1, conv.out_size[1]) - conv.padding[1] - conv.size[1]
    first, last = max(top, 0), max(min(bottom, conv.size[0]), max(top, 0))
    strip = input[:, :, first:last].to(dtype)
    if last == first:  # the strip lies in the padding altogether
        pixels = strip.new_zeros((strip.shape[0], conv.channels, bottom - top, conv.span(1, conv.out_size[1])))
    else:
        pixels = F.pad(strip, (conv.padding[1], right, first - top, bottom - last))
    if not shifted:
        pixels = F.unfold(pixels, conv.kernel, conv.dilation, 0, conv.stride)  # [n, C_in·kH·kW, M]
    return pixels.reshape(input.shape[0], conv.groups, -1, pixels[0, 0].numel() if shifted else pixels.shape[-1])


def _largest_block(conv: ConvGeometry, shifted: bool, budget: int) -> tuple[int, int]:
    """Return how many samples and output rows at once stay within `budget` numbers (at least one of each)."""

    def numbers(height: int) -> int:  # of one sample: both strips, the Gram block, A, δ_I, δ_J and δ_I·A
        positions = height * conv.out_size[1]
        pixels = conv.span(0, height) * conv.span(1, conv.out_size[1]) if shifted else positions
        strip = conv.channels * conv.span(0, height) * conv.span(1, conv.out_size[1])
        strip += 0 if shifted else conv.groups * conv.patch_size * positions
        return 2 * strip + conv.groups * (pixels**2 + positions**2) + 3 * conv.filters * positions

    height = conv.out_size[0]
    while height > 1 and numbers(height) > budget:
        height = (height + 1) // 2
    return max(1, min(conv.samples, budget // numbers(height))), height
