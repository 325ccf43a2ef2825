"""`filter_grad_sq` on the CPU: torch's own convolution, and the loops of ``csrc/cpu`` where it is not the fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import _C

if TYPE_CHECKING:
    from torch import Tensor

    from ._geometry import ConvGeometry
    from ._routes import Route

WORKSPACE_BYTES = 64 << 20
"""What the direct route may allocate beyond inputs and result (torch's own convolution, inside it, may unfold one sample
besides: it does so in float64). One group's weight gradient, if larger than this, takes that much instead."""

_NATIVE = {
    ("winograd", torch.float32): _C.filter_grad_sq_winograd_f32,
    ("winograd", torch.float64): _C.filter_grad_sq_winograd_f64,
    ("shifted_gram", torch.float32): _C.filter_grad_sq_shifted_gram_f32,
    ("shifted_gram", torch.float64): _C.filter_grad_sq_shifted_gram_f64,
}


def filter_grad_sq_cpu(input: Tensor, grad_output: Tensor, conv: ConvGeometry, route: Route) -> Tensor:
    """Return ``[N, C_out]`` in the dtype of `input` by the given route."""
    if route == "direct":
        return _direct(input, grad_output, conv)
    out = input.new_empty((conv.samples, conv.filters))
    _NATIVE[route, input.dtype](
        input.data_ptr(),
        input.stride(),
        grad_output.data_ptr(),
        grad_output.stride(),
        _C.Conv(*conv.for_kernels()),
        out.data_ptr(),
    )
    return out


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
