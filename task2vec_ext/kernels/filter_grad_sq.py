"""`filter_grad_sq`: schema, checks, CPU and CUDA dispatch and the fake implementation of the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from .cpu import filter_grad_sq_cpu
from .cuda import filter_grad_sq_cuda
from .geometry import CPU_DTYPES, CUDA_DTYPES, as_convolution, check_dtype, conv_geometry, has_tangent
from .routes import ROUTES, Route, available_routes, choose_route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .geometry import ConvGeometry

_DTYPES = {"cpu": CPU_DTYPES, "cuda": CUDA_DTYPES}
_IMPLEMENTATIONS = {"cpu": filter_grad_sq_cpu, "cuda": filter_grad_sq_cuda}

_library = torch.library.Library("task2vec_ext", "DEF")
_library.define(
    "filter_grad_sq(Tensor input, Tensor grad_output, SymInt[] weight_shape, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation, SymInt groups, str route) -> Tensor"
)


def _checked(input: Tensor, grad_output: Tensor, *layer: Any, route: str) -> ConvGeometry:
    """Return the sizes of the layer, once the arguments are known to fit."""
    if input.device.type in _DTYPES:
        check_dtype("filter_grad_sq", input, _DTYPES[input.device.type])
    if route != "auto" and route not in ROUTES:
        raise ValueError(f"filter_grad_sq: expected route 'auto' or one of {ROUTES}, got {route!r}.")
    return conv_geometry(input, grad_output, *layer)


def _empty(input: Tensor, conv: ConvGeometry) -> Tensor:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return input.new_empty((conv.samples, conv.filters), dtype=dtype)


def _run(input: Tensor, grad_output: Tensor, *arguments: Any) -> Tensor:
    *layer, route = arguments
    device_type = input.device.type
    conv = _checked(input, grad_output, *layer, route=route)
    if route == "auto":
        route = choose_route(conv, device_type)
    elif route not in (available := available_routes(conv, device_type)):
        raise ValueError(
            f"filter_grad_sq: expected a route this layer can take on {device_type}, one of {available}; got {route!r}."
        )
    if conv.samples == 0:
        return _empty(input, conv)
    with torch.autocast(device_type, enabled=False):  # it would narrow the Gram matrices
        return _IMPLEMENTATIONS[device_type](input, grad_output, conv, route)


_library.impl("filter_grad_sq", _run, "CPU")
_library.impl("filter_grad_sq", _run, "CUDA")


@torch.library.register_fake("task2vec_ext::filter_grad_sq")
def _fake(input: Tensor, grad_output: Tensor, *arguments: Any) -> Tensor:
    *layer, route = arguments
    return _empty(input, _checked(input, grad_output, *layer, route=route))


def _refuse_derivative(ctx: Any, grad: Tensor) -> Any:
    raise NotImplementedError(
        "filter_grad_sq: it has no derivative (it returns squared gradients, not a loss); detach its inputs, or use "
        "task2vec_ext.kernels.reference.filter_grad_sq, which autograd can follow."
    )


torch.library.register_autograd("task2vec_ext::filter_grad_sq", _refuse_derivative)


def filter_grad_sq(
    input: Tensor,
    grad_output: Tensor,
    weight_shape: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Literal["same", "valid"] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    route: Route | Literal["auto"] = "auto",
) -> Tensor:
    """Return the squared norm of every image's weight gradient, for every filter of a Conv2d or Linear layer.

    ``out[n, o] = ‖g_n[o,·]‖²`` with ``g_n[o, p] = Σ_q grad_output[n, o, q] · patch(input_n)[p, q]``, which a backward
    pass of image n alone would leave in ``weight.grad[o]``. These gradients are not stored.

    Args:
        input: The layer's input, ``[N, C_in, H, W]``; for a Linear layer ``[N, D_in]`` or ``[N, …, D_in]``. float32 or
            float64 on the CPU; float32, float16 or bfloat16 on CUDA. Any strides (slices too); channels-last is the
            fastest.
        grad_output: Gradient of the **summed** loss at the layer's output, ``[N, C_out, H_out, W_out]`` or ``[N, …,
            D_out]``; dtype and device of `input`.
        weight_shape: ``(C_out, C_in / groups, kH, kW)``, or ``(D_out, D_in)`` for a Linear layer.
        stride: As in Conv2d.
        padding: As in Conv2d, with zeros; for other padding modes pad the input first and give 0.
        dilation: As in Conv2d.
        groups: As in Conv2d.
        route: ``"direct"`` (form the gradient piece by piece), ``"winograd"`` (the same in the Winograd domain; on the
            CPU, 3×3, stride and dilation 1), ``"gram"`` (on CUDA) or ``"shifted_gram"`` (quadratic form of the patches'
            or the pixels' Gram matrix); ``"auto"`` takes the cheapest. All give the same numbers up to rounding (Note).

    Returns:
        ``[N, C_out]``, on the device of `input`, float64 for float64 inputs and float32 otherwise (16-bit inputs are
        accumulated in float32). Unit: that of the loss, squared, per weight².

    Raises:
        ValueError: If shapes or parameters do not belong to one layer, or the route is unknown.
        TypeError: If a dtype is not supported on the device.
        NotImplementedError: If a derivative of the result is asked for.

    Note:
        The same inputs give the same bits. Memory beyond inputs and result does not grow with the batch: on the CPU at
        most 16 MiB and copies of one image per thread (groups of few filters: torch's own convolution, one image at a
        time), on CUDA 256 MiB. A Gram route forced on a large map takes what one output row of the Gram matrix needs.

        On the CPU an entry whose terms cancel, underflow or overflow in a Gram route or the Winograd route is computed
        by the direct route instead. On CUDA it is not: the Gram routes lose float32 inputs whose square leaves the
        range (sizes below 1e-18 or above 1e18) and, relative to themselves, entries whose terms cancel.

        On GPUs of compute capability 8.0 and later 16-bit inputs are multiplied on tensor cores (direct route: in
        groups of at least 16 filters). So are float32 inputs if torch does so for its own weight
        gradients: ``torch.backends.cudnn.conv.fp32_precision`` is ``"tf32"``, the default; ``"ieee"`` keeps float32.
        TF32 has a 10-bit fraction, so results have errors of about 2⁻¹⁰ of the largest, more where sums cancel. 16-bit
        inputs are exact in the direct route; the Gram routes round the Gram matrix to TF32, with errors of that size.
        Sums are float32. Channels-last tensors whose groups are a multiple of 16 bytes wide are read fastest.

    Source:
        Achille et al. 2019, §2 (diagonal of the Fisher, averaged per filter: divide by N·P); routes: the "ghost norm"
        of Goodfellow 2015 (arXiv 1510.01799) and Li et al. 2021 (arXiv 2110.05679), here per filter.
    """
    if not torch.compiler.is_compiling() and has_tangent(input, grad_output):
        _refuse_derivative(None, input)
    input, grad_output, *layer = as_convolution(input, grad_output, weight_shape, stride, padding, dilation)
    return torch.ops.task2vec_ext.filter_grad_sq(input, grad_output, *layer, groups, route)
