"""From a backward pass to per-sample squared gradients: hooks that live in a context manager and die with it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .ops import filter_grad_sq

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .embedding import Layer


class _Root(torch.autograd.Function):
    """Identity that makes the graph start at a layer's output: nothing before it is differentiated.

    A detached leaf would do, but for the in-place ReLU that may follow: a leaf must not be overwritten.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None


class Captured:
    """Per-sample squared gradients of every layer, filled by each backward pass inside `capture`."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Hold nothing yet."""
        self._layers = layers
        self._rows: dict[str, Tensor] = {}

    def put(self, name: str, value: Tensor) -> None:
        """Store ``[B, C_out]`` of one layer."""
        self._rows[name] = value

    def take(self) -> Tensor:
        """Return ``‖g_n[o,·]‖²`` of the last backward pass, all layers side by side, and forget it.

        Returns:
            ``[B, K]``, float32 or float64 like the layers.

        Raises:
            RuntimeError: If no gradient reached a layer.
        """
        silent = [layer.name for layer in self._layers if layer.name not in self._rows]
        if silent:
            raise RuntimeError(
                f"capture: no gradient reached {', '.join(silent[:3])}{' …' if len(silent) > 3 else ''}: the head's "
                "input does not depend on it; pass layers=[…] with the others."
            )
        row = torch.cat([self._rows[layer.name] for layer in self._layers], 1)
        self._rows.clear()
        return row


@contextmanager
def capture(module: nn.Module, layers: Sequence[Layer]) -> Iterator[Captured]:
    """Yield a `Captured` that holds the layers' per-sample squared gradients after each backward pass.

    For one forward pass of `module` and any number of backward passes through it. Every parameter must be frozen
    (`frozen` in probe.py): autograd then runs no weight gradient, and the graph starts at the first layer's output. A
    loss summed over samples gives true per-sample values.

    Args:
        module: the probe's network, in eval mode.
        layers: as `Probe.layers` returns them.

    Yields:
        The values' holder.
    """
    captured = Captured(layers)
    handles = [module.get_submodule(layer.name).register_forward_hook(_hook(layer.name, captured)) for layer in layers]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, captured: Captured) -> Any:
    ran = False

    def forward_hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal ran
        if ran:
            raise NotImplementedError(
                f"capture: layer {name!r} ran twice in one forward pass; the per-sample gradient of a reused layer is "
                "not the sum of its parts squared. Pass layers=[…] with the others."
            )
        ran = True
        input = args[0].detach()
        version = input._version
        if not output.requires_grad:
            output = _Root.apply(output, torch.empty(0, requires_grad=True))

        def backward_hook(grad_output: Tensor) -> None:
            if input._version != version:
                raise RuntimeError(
                    f"capture: the input of layer {name!r} was changed in place after the layer had read it; make the "
                    "operation that follows it out-of-place."
                )
            captured.put(name, _grad_sq(layer, input, grad_output))

        # On the tensor, not on the module: module backward hooks break on the in-place ReLU that may follow.
        output.register_hook(backward_hook)
        return output

    return forward_hook


def _grad_sq(layer: nn.Module, input: Tensor, grad_output: Tensor) -> Tensor:
    """Return ``[B, C_out]`` for one layer."""
    with torch.no_grad():
        # Under autocast the layer itself computed in a narrower type than its input's; the CPU's loops take no 16 bits.
        dtype = grad_output.dtype
        if input.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32
        input, grad_output = input.to(dtype), grad_output.to(dtype)
        if isinstance(layer, nn.Conv2d):
            padding: Any = layer.padding
            if layer.padding_mode != "zeros":
                input = F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
                padding = 0
            return filter_grad_sq(
                input, grad_output, layer.weight.shape, layer.stride, padding, layer.dilation, layer.groups
            )
        if isinstance(layer, nn.Linear):
            return filter_grad_sq(input, grad_output, layer.weight.shape)
        assert isinstance(layer, nn.BatchNorm2d)  # Probe.layers finds no other kind
        mean, var = layer.running_mean, layer.running_var
        assert mean is not None  # check_eval refuses others
        assert var is not None
        # The scale's gradient is Σ_q δ·x̂, one weight a channel; x̂ = (x − μ)·rstd, folded so that x is read once.
        rstd = (var + layer.eps).rsqrt()
        moment = torch.einsum("nchw,nchw->nc", grad_output, input)
        return ((moment - mean * grad_output.sum((2, 3))) * rstd).square()
