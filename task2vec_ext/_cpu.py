"""`filter_grad_sq` on the CPU: torch's own convolutions and matrix products, and OpenMP loops where those are slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import _C
from ._gram import Window, gram_route

if TYPE_CHECKING:
    from torch import Tensor

    from ._geometry import ConvGeometry
    from ._routes import Route

WORKSPACE_BYTES = 64 << 20
"""What a call may allocate beyond inputs and result (torch's own convolution, inside the direct route, may unfold one
sample besides: it does so in float64). A layer of which one row of one sample, or one group's weight
gradient, is larger than this takes that much instead. 64 MiB: twice what the layers of a ResNet at 224 px need to run
without being cut, and far below what their activations take."""


def filter_grad_sq_cpu(input: Tensor, grad_output: Tensor, conv: ConvGeometry, route: Route) -> Tensor:
    """Return ``[N, C_out]`` in the dtype of `input` by the given route."""
    if route == "direct":
        return _direct(input, grad_output, conv)
    return gram_route(
        input,
        grad_output,
        conv,
        shifted=route == "shifted_gram",
        quadratic_form=quadratic_form_cpu,
        workspace_bytes=WORKSPACE_BYTES,
        dtype=input.dtype,
    )


def _direct(input: Tensor, grad_output: Tensor, conv: ConvGeometry) -> Tensor:
    """One sample at a time through the library's weight gradient, squared and forgotten."""
    out = input.new_empty((conv.samples, conv.filters))
    weight_bytes = conv.patch_size * input.element_size()  # of one filter
    if conv.groups == 1:
        step = max(1, WORKSPACE_BYTES // weight_bytes)  # filters at once
        blocks = [(slice(None), slice(o, o + step), 1) for o in range(0, conv.filters, step)]
    else:
        step = max(1, WORKSPACE_BYTES // (weight_bytes * conv.group_filters))  # groups at once
        blocks = [
            (
                slice(g * conv.group_channels, (g + step) * conv.group_channels),
                slice(g * conv.group_filters, (g + step) * conv.group_filters),
                min(step, conv.groups - g),
            )
            for g in range(0, conv.groups, step)
        ]
    for n in range(conv.samples):
        for channels, filters, groups in blocks:
            delta = grad_output[n : n + 1, filters]
            gradient = torch.ops.aten.convolution_backward(
                delta,
                input[n : n + 1, channels],
                # Only its shape is read: one number, expanded.
                input.new_empty(1).expand(delta.shape[1], conv.group_channels, *conv.kernel),
                None,
                conv.stride,
                conv.padding,
                conv.dilation,
                False,
                (0, 0),
                groups,
                (False, True, False),
            )[1]
            # Not torch.linalg.vector_norm: its square root would cost a rounding and be squared again.
            out[n, filters] = gradient.flatten(1).square_().sum(1)
    return out


def quadratic_form_cpu(gram: Tensor, rows: Tensor, columns: Tensor, window: Window) -> Tensor:
    """See `QuadraticForm`; float32 and float64."""
    if not gram.dtype == rows.dtype == columns.dtype:
        raise TypeError(f"quadratic_form: expected one dtype, got {gram.dtype}, {rows.dtype} and {columns.dtype}.")
    n, groups = gram.shape[:2]
    patches = gram if window.kernel == (1, 1) and window.stride == (1, 1) else _window_sum(gram, rows, columns, window)
    left = rows.reshape(n, groups, -1, patches.shape[2])
    right = columns.reshape(n, groups, -1, patches.shape[3])
    return (left @ patches).mul_(right).sum(-1).reshape(n, -1)


def _window_sum(gram: Tensor, rows: Tensor, columns: Tensor, window: Window) -> Tensor:
    positions = rows[0, 0].numel(), columns[0, 0].numel()
    gram = gram.contiguous()
    out = gram.new_empty((*gram.shape[:2], *positions))
    loop = {torch.float32: _C.window_sum_f32, torch.float64: _C.window_sum_f64}[gram.dtype]  # an address has no dtype
    matrices = gram.shape[0] * gram.shape[1]
    loop(gram.data_ptr(), out.data_ptr(), matrices, positions, tuple(gram.shape[2:]), _C.GramWindow(*window))
    return out
