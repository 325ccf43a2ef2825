"""How far `filter_grad_sq` may be from float64 by rounding alone: a limit for every number, derived from its own terms.

With g = Σ_q δ_q·u_q the gradient of one filter, the operator returns ‖g‖². Let b = Σ_q δ_q²·‖u_q‖², the sum of all
squared products. If every product is off by an independent relative error of root mean square e, then g is off by a
vector whose component along any direction, g's included, has standard deviation at most e·√b (Cauchy–Schwarz; also
where products share an operand), and ‖g‖² is off by 2·e·‖g‖·√b + e²·b. Numbers of a Gram matrix that are off by e move
its quadratic form by at most e·b, since A_qr² ≤ A_qq·A_rr.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from task2vec_ext.kernels import reference

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

DEVIATIONS = 5
"""Standard deviations that random errors may reach: 6e-7 of all numbers have more, and the bounds on the standard
deviations are themselves not attained."""

_FLOAT32 = 2.0**-24 / math.sqrt(3)
"""Root mean square of rounding to 24 bits, to the nearest: uniform in ±2⁻²⁴."""
_TF32 = 2.0**-11 / math.sqrt(3)
"""Root mean square of rounding to 11 bits: uniform in ±2⁻¹¹ to the nearest; where it cuts off, as wide about −2⁻¹¹."""
_CUT = 2.0**-23
"""A tensor core cuts off what it adds to a sum, by up to this part of the sum, and always towards zero."""
_TENSOR_CORE_STEP = 8
"""Products that a tensor core adds up at once (TF32; 16 of 16-bit numbers)."""
_WINOGRAD = 3
"""Growth of float32 errors through the Winograd transforms of 4×4 outputs, whose sums are also shorter; measured errors
are a twentieth of these limits or less (tests/benchmarks/test_rounding.py)."""


class Expected(NamedTuple):
    """float64 results of `filter_grad_sq`, and the largest error that rounding explains."""

    values: Tensor
    limits: Tensor

    def compare(self, actual: Tensor) -> Comparison:
        """Return how far a result is from the float64 one."""
        error = (actual.to(self.values) - self.values).abs()
        shares = torch.where(error == 0, 0.0, error / self.limits)  # NaN stays
        norm = self.values.norm().clamp(min=torch.finfo(torch.float64).tiny)
        return Comparison(float(shares.nan_to_num(nan=math.inf).max()), float(error.norm() / norm))


class Comparison(NamedTuple):
    """A result against its float64 reference."""

    error_to_limit: float
    """The largest error ÷ its limit: a result is right up to rounding where this is at most 1."""
    relative_error: float
    """‖actual − expected‖ / ‖expected‖."""


def expect(input: Tensor, grad_output: Tensor, layer: Sequence[Any], route: str, precision: Precision) -> Expected:
    """Return what the operator must give for these tensors, by plain torch operations in float64 on their device.

    Args:
        input: ``[N, C_in, H, W]``, as the operator gets it.
        grad_output: ``[N, C_out, H_out, W_out]``.
        layer: weight_shape, stride, padding, dilation, groups, as the operator gets them.
        route: The route taken.
        precision: What products are computed in; "bf16" for 16-bit tensors on a GPU.

    Returns:
        ``[N, C_out]`` values and limits.
    """
    x, delta = input.double(), grad_output.double()
    (filters, channels, *kernel), stride, padding, dilation, groups = layer
    values = reference.filter_grad_sq(x, delta, *layer)
    ones = x.new_ones((groups, channels, *kernel))
    norms = F.conv2d(x.square(), ones, None, stride, padding, dilation, groups)  # [N, G, H_out, W_out]: ‖u_q‖²
    b = (delta.square() * norms.repeat_interleave(filters // groups, 1)).sum((2, 3))
    largest = torch.maximum(values, b)
    positions, patch = delta[0, 0].numel(), channels * math.prod(kernel)
    gram, tensor_cores = route in ("gram", "shifted_gram"), precision != "fp32"

    # Sums: errors of n additions in float32 add up like √n; those of a tensor core, all towards zero, like n.
    terms = [patch, positions] if gram else [positions]
    if tensor_cores:
        added = sum(_CUT * terms_of_one / _TENSOR_CORE_STEP for terms_of_one in terms)
    else:
        added = DEVIATIONS * _FLOAT32 * sum(map(math.sqrt, terms)) * (_WINOGRAD if route == "winograd" else 1)
    # ‖g‖² sums the squares of all weights; 1: what is stored is rounded.
    limits = (2 * added + DEVIATIONS * _FLOAT32 * (1 + math.sqrt(patch))) * largest

    # Products: TF32 rounds both operands, 16-bit numbers are multiplied exactly.
    if precision == "tf32":
        e = math.sqrt(2) * _TF32
        limits += DEVIATIONS * (2 * e * (values * b).sqrt() + e**2 * b)
        # Not independent where one number is at every location: after average pooling, grad_output is. Its own error
        # then moves all of g by up to 2⁻¹¹.
        limits += 2 * 2.0**-11 * values
        if gram:  # a matrix product may cut its operands off rather than round them: −2⁻¹¹ each, on average
            limits += 2 * 2.0**-11 * values
    if gram and tensor_cores:  # the form's operands are TF32: the Gram matrix is rounded
        limits += DEVIATIONS * _TF32 * b
    # Squares below float32's normal numbers may be lost, one of every weight.
    return Expected(values, limits + patch * torch.finfo(torch.float32).tiny)
