"""`filter_grad_sq` on the CPU: the loops of ``csrc/cpu``, and torch's own convolution for groups of few filters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .. import _C
from .native import SCALARS
from .routes import NARROW_GROUP_FILTERS

if TYPE_CHECKING:
    from torch import Tensor

    from .geometry import ConvGeometry
    from .routes import Route

WORKSPACE_BYTES = 64 << 20
"""Bytes of weight gradients that torch's convolution returns at once, unless a single group's are more."""

_ROUTES = {
    "direct": _C.cpu.filter_grad_sq_direct,
    "winograd": _C.cpu.filter_grad_sq_winograd,
    "shifted_gram": _C.cpu.filter_grad_sq_shifted_gram,
}


def filter_grad_sq_cpu(input: Tensor, grad_output: Tensor, conv: ConvGeometry, route: Route) -> Tensor:
    """Return ``[N, C_out]`` in the dtype of `input` by the given route."""
    if route == "direct" and conv.group_filters < NARROW_GROUP_FILTERS:
        return _narrow(input, grad_output, conv)
    out = input.new_empty((conv.samples, conv.filters))
    arrays = input.data_ptr(), input.stride(), grad_output.data_ptr(), grad_output.stride(), SCALARS[input.dtype]
    _ROUTES[route](*arrays, conv.for_kernels(), out.data_ptr())
    return out


def _narrow(input: Tensor, grad_output: Tensor, conv: ConvGeometry) -> Tensor:
    """Take torch's own weight gradient, one sample at a time."""
    out = input.new_empty((conv.samples, conv.filters))
    group_bytes = conv.group_filters * conv.patch_size * input.element_size()
    step = max(1, WORKSPACE_BYTES // group_bytes)  # groups at once
    for n in range(conv.samples):
        for first in range(0, conv.groups, step):
            groups = min(step, conv.groups - first)
            channels = slice(first * conv.group_channels, (first + groups) * conv.group_channels)
            filters = slice(first * conv.group_filters, (first + groups) * conv.group_filters)
            delta, pixels = grad_output[n : n + 1, filters], input[n : n + 1, channels]
            # Only the shape of the weight is read: one number, expanded.
            weight = input.new_empty(1).expand(groups * conv.group_filters, conv.group_channels, *conv.kernel)
            options = conv.stride, conv.padding, conv.dilation, False, (0, 0), groups, (False, True, False)
            gradient = torch.ops.aten.convolution_backward(delta, pixels, weight, None, *options)[1]
            # Not torch.linalg.vector_norm: its square root would cost a rounding and be squared again.
            out[n, filters] = gradient.flatten(1).square_().sum(1)
    return out
