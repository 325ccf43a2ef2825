"""Gaussian noise on activations and on weights, drawn again in the backward pass instead of being stored.

Every number is a function of (seed, layer, step, place): Philox4x32-10 and Box–Muller (``csrc/philox.h``). The uniform
numbers agree in every bit on the CPU and on GPUs, in any memory layout and for any number of threads; the normal ones
to float32 rounding.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch

from . import noise_kernels
from .geometry import as_convolution, conv_geometry, has_tangent
from .native import Runtime
from .noise_kernels import WEIGHT_STREAM, dense, patch_norm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_library = torch.library.Library("task2vec_ext", "FRAGMENT")
_library.define("add_noise(Tensor output, Tensor norm, Tensor sigma, int seed, int layer, int step) -> Tensor")
_library.define(
    "add_noise_backward(Tensor grad, Tensor norm, Tensor sigma, int seed, int layer, int step, bool norm_too)"
    " -> (Tensor, Tensor)"
)
_library.define("weight_noise(Tensor weight, Tensor sigma, Tensor starts, int seed, int step) -> Tensor")
_library.define("weight_noise_backward(Tensor grad, Tensor starts, int seed, int step) -> Tensor")


def local_noise(
    output: Tensor,
    input: Tensor,
    log_variance: Tensor,
    weight_shape: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Literal["same", "valid"] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    seed: int,
    layer: int,
    step: int,
    epsilon: float = 0.01,
) -> Tensor:
    """Return the output of a Conv2d or Linear layer as if its weights were noisy, independently at every location.

    ``out[n,o,q] = output[n,o,q] + √(σ_o²·B[n,q])·ε[n,o,q]``, ε standard normal, ``B[n,q] = Σ_{p∈patch(q)} (x_n[p]² +
    epsilon)`` over the input channels of the filter's group (zero padding adds nothing): the variance that
    ``conv2d(x² + epsilon, σ²)`` gives, from one channel a group.

    Args:
        output: Of the layer, ``[N, C_out, H_out, W_out]``, or of a Linear layer ``[N, …, D_out]``; float32 or float64
            on the CPU, float32, float16 or bfloat16 on CUDA; channels-first or channels-last, as it lies.
        input: Of the layer, ``[N, C_in, H, W]`` or ``[N, …, D_in]``, of the dtype of `output`.
        log_variance: Log σ² of every filter, ``[C_out]``, of any floating-point dtype.
        weight_shape: ``(C_out, C_in / groups, kH, kW)``, or ``(D_out, D_in)``.
        stride: As in Conv2d.
        padding: As in Conv2d; for other padding modes pad the input first and give 0.
        dilation: As in Conv2d.
        groups: As in Conv2d.
        seed: 0 … 2⁶³ − 1.
        layer: 0 … 2³² − 2; each has its own stream of numbers.
        step: 0 … 2³² − 1; each has its own draw.
        epsilon: At least 0; keeps the variance positive where the input is 0 (the authors' 0.01).

    Returns:
        Like `output`. Gradients flow to `output`, `input` and `log_variance`; ε is drawn again for them and nothing of
        its size is kept (except √B, once a filter, of a layer in groups).

    Raises:
        ValueError: If shapes, numbers or devices do not belong to one layer.
        TypeError: If a dtype is not supported on the device.
        NotImplementedError: If a second derivative, or one in forward mode, is asked for.

    Source:
        Kingma, Salimans, Welling 2015 (arXiv 1506.02557), local reparameterisation; Salmon et al., SC 2011, Philox.
    """
    shape, who = output.shape, ("local_noise", "output")
    input, output, weight_shape, stride, padding, dilation = as_convolution(
        input, output, weight_shape, stride, padding, dilation, *who
    )
    conv = conv_geometry(input, output, weight_shape, stride, padding, dilation, groups, *who)
    _check_numbers("local_noise", seed, layer, step)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"local_noise: expected epsilon >= 0, got {epsilon}.")
    _check_log_variance("local_noise", log_variance, output, input)
    if log_variance.shape != (conv.filters,):
        raise ValueError(
            f"local_noise: expected log_variance of shape [{conv.filters}], one number a filter; got "
            f"{list(log_variance.shape)}."
        )
    # Autocast would narrow what is squared.
    with torch.autocast(output.device.type, enabled=False):
        norm = patch_norm(input, conv, epsilon)
        if groups > 1:
            norm = norm.unsqueeze(2).expand(-1, -1, conv.group_filters, -1, -1).flatten(1, 2)
        sigma = (0.5 * log_variance.to(norm.dtype)).exp()
        noisy: Tensor = torch.ops.task2vec_ext.add_noise(output, norm, sigma, seed, layer, step)
    return noisy if noisy.shape == shape else noisy.squeeze(-1).transpose(1, 2).reshape(shape)


def weight_noise(weight: Tensor, log_variance: Tensor, starts: Tensor, *, seed: int, step: int) -> Tensor:
    """Return all layers' weights plus noise, ``w[o,j] + σ_o·ε[o,j]``, in one pass over them.

    Args:
        weight: The filters of all layers end to end, ``[W]``; float32, on the CPU also float64.
        log_variance: Log σ² of every filter, ``[K]``, of any floating-point dtype.
        starts: Where each filter begins, and W at the end, ``[K + 1]`` int64, on the device of `weight`. Values are
            checked on the CPU only: on a GPU that would wait for the device.
        seed: 0 … 2⁶³ − 1.
        step: 0 … 2³² − 1; each has its own draw.

    Returns:
        ``[W]``. Gradients flow to `weight` and `log_variance`; ε is drawn again for them.

    Raises:
        ValueError: If shapes, numbers or devices do not fit.
        TypeError: If a dtype is not supported on the device.
        NotImplementedError: If a second derivative, or one in forward mode, is asked for.

    Source:
        Achille et al. 2019 (arXiv 1902.03545), §3: w ∼ N(ŵ, Λ⁻¹).
    """
    _check_numbers("weight_noise", seed, 0, step)
    if weight.dim() != 1 or log_variance.dim() != 1 or starts.shape != (len(log_variance) + 1,):
        raise ValueError(
            "weight_noise: expected weight [W], log_variance [K] and starts [K + 1]; got "
            f"{list(weight.shape)}, {list(log_variance.shape)} and {list(starts.shape)}."
        )
    _check_log_variance("weight_noise", log_variance, weight, starts)
    if starts.dtype != torch.int64:
        raise TypeError(f"weight_noise: expected starts of int64, got {starts.dtype}.")
    sigma = (0.5 * log_variance.to(weight.dtype)).exp()
    return torch.ops.task2vec_ext.weight_noise(weight, sigma, starts, seed, step)


def _check_numbers(who: str, seed: int, layer: int, step: int) -> None:
    for name, value, limit in (("seed", seed, 2**63), ("layer", layer, WEIGHT_STREAM), ("step", step, 2**32)):
        if not 0 <= value < limit:
            raise ValueError(f"{who}: expected {name} from 0 to {limit - 1}, got {value}.")


def _check_log_variance(who: str, log_variance: Tensor, *others: Tensor) -> None:
    """Raise unless log σ² is floating-point, all tensors are on one device and none is in forward mode."""
    if not log_variance.is_floating_point():
        raise TypeError(f"{who}: expected log_variance of a floating-point dtype, got {log_variance.dtype}.")
    devices = {str(tensor.device) for tensor in (log_variance, *others)}
    if len(devices) > 1:
        raise ValueError(f"{who}: expected all tensors on one device, got them on {', '.join(sorted(devices))}.")
    if not torch.compiler.is_compiling() and has_tangent(log_variance, *others):
        _refuse_derivative(who)


def _refuse_derivative(who: str, *_: Any) -> NoReturn:
    raise NotImplementedError(
        f"{who}: it has first derivatives in reverse mode alone; use task2vec_ext.kernels.reference, which autograd "
        "can follow."
    )


def _impl(name: str, function: Callable[..., Any]) -> None:
    _library.impl(name, function, "CPU")
    _library.impl(name, lambda first, *rest: function(first, *rest, runtime=Runtime.of(first)), "CUDA")


_impl("add_noise", noise_kernels.add_noise)
_impl("add_noise_backward", noise_kernels.add_noise_backward)
_impl("weight_noise", noise_kernels.add_weight_noise)
_impl("weight_noise_backward", noise_kernels.weight_noise_backward)


@torch.library.register_fake("task2vec_ext::add_noise")
def _add_noise_fake(output: Tensor, norm: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(dense(output, norm)[0])


@torch.library.register_fake("task2vec_ext::add_noise_backward")
def _add_noise_backward_fake(grad: Tensor, norm: Tensor, sigma: Tensor, *key: Any) -> tuple[Tensor, Tensor]:
    *_, norm_too = key
    return torch.empty_like(sigma), torch.empty_like(dense(grad, norm)[1]) if norm_too else norm.new_empty(0)


def _save_local(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, norm, sigma, *ctx.key = inputs
    ctx.save_for_backward(norm, sigma)


def _local_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    norm, sigma = ctx.saved_tensors
    to_norm, to_sigma = ctx.needs_input_grad[1:3]
    if not (to_norm or to_sigma):
        return grad, None, None, None, None, None
    of_sigma, of_norm = torch.ops.task2vec_ext.add_noise_backward(grad, norm, sigma, *ctx.key, to_norm)
    return grad, of_norm if to_norm else None, of_sigma, None, None, None


torch.library.register_autograd("task2vec_ext::add_noise", _local_gradients, setup_context=_save_local)
torch.library.register_autograd("task2vec_ext::add_noise_backward", partial(_refuse_derivative, "local_noise"))


@torch.library.register_fake("task2vec_ext::weight_noise")
def _weight_noise_fake(weight: Tensor, sigma: Tensor, starts: Tensor, seed: int, step: int) -> Tensor:
    return weight.new_empty(weight.shape)


@torch.library.register_fake("task2vec_ext::weight_noise_backward")
def _weight_noise_backward_fake(grad: Tensor, starts: Tensor, seed: int, step: int) -> Tensor:
    return grad.new_empty(len(starts) - 1)


def _save_weights(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, starts, *ctx.key = inputs
    ctx.save_for_backward(starts)


def _weight_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if not ctx.needs_input_grad[1]:
        return grad, *[None] * 4
    return grad, torch.ops.task2vec_ext.weight_noise_backward(grad, *ctx.saved_tensors, *ctx.key), None, None, None


torch.library.register_autograd("task2vec_ext::weight_noise", _weight_gradients, setup_context=_save_weights)
torch.library.register_autograd("task2vec_ext::weight_noise_backward", partial(_refuse_derivative, "weight_noise"))
