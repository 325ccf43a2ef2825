"""From a backward pass to per-sample squared gradients: a watch over the weights that ends with its context manager."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..kernels.filter_grad_sq import filter_grad_sq
from ..probe.layers import filter_weight
from ..probe.watch import BatchNormUse, ConvUse, LinearUse, Use, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..probe.layers import Layer


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
        """Hold nothing yet: `rows` are ``[B, C_out]`` by layer."""
        self._layers = layers
        self.rows: dict[str, Tensor] = {}

    def take(self) -> Tensor:
        """Return ``‖g_n[o,·]‖²`` of the last backward pass, all layers side by side ``[B, K]``, and forget it."""
        silent = [layer.name for layer in self._layers if layer.name not in self.rows]
        if silent:
            raise RuntimeError(
                f"capture: no gradient reached {', '.join(silent[:3])}{' …' if len(silent) > 3 else ''}: the head's "
                "input does not depend on it; pass layers=[…] with the others."
            )
        row = torch.cat([self.rows[layer.name] for layer in self._layers], 1)
        self.rows.clear()
        return row


@contextmanager
def capture(module: nn.Module, layers: Sequence[Layer], samples: int) -> Iterator[Captured]:
    """Yield a `Captured` that holds the layers' per-sample squared gradients after each backward pass.

    For one forward pass of `module`, in eval mode, on B = `samples` images, and any number of backward passes through
    it. Every parameter must be `frozen`: autograd then runs no weight gradient, and the graph starts at the first
    layer's output. A loss summed over samples gives true per-sample values.
    """
    captured = Captured(layers)
    weights = {layer.name: filter_weight(module, layer.name) for layer in layers}
    with Watch(weights, lambda name, use, output: _follow(name, use, output, captured, samples)):
        yield captured


def _follow(name: str, use: Use, output: Tensor, captured: Captured, samples: int) -> Tensor:
    """Return `output`, whose gradient will be put among the captured."""
    input = use.input.detach()
    version = input._version
    # A Linear layer may see an image in parts, such as Swin's windows.
    if input.dim() < 2 or (len(input) % samples if isinstance(use, LinearUse) else len(input) != samples):
        raise NotImplementedError(
            f"capture: expected the input of layer {name!r} to hold the batch's {samples} images along its first "
            f"axis, got shape {list(input.shape)}; pass layers=[…] with the others."
        )
    if not output.requires_grad:
        output = _Root.apply(output, torch.empty(0, requires_grad=True))

    def backward_hook(grad_output: Tensor) -> None:
        if input._version != version:
            raise RuntimeError(
                f"capture: the input of layer {name!r} was changed in place after the layer had read it; make the "
                "operation that follows it out-of-place."
            )
        captured.rows[name] = _grad_sq(use, input, grad_output, samples)

    # On the tensor, not on the module: module backward hooks break on the in-place ReLU that may follow.
    output.register_hook(backward_hook)
    return output


def _grad_sq(use: Use, input: Tensor, grad_output: Tensor, samples: int) -> Tensor:
    """Return ``[B, C_out]`` for one layer."""
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        # Under autocast the layer itself computed in a narrower type than its input's. The CPU's loops take no 16 bits,
        # and a BatchNorm's difference of sums loses them.
        dtype = grad_output.dtype
        wide = input.device.type == "cpu" or isinstance(use, BatchNormUse)
        if wide and dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32
        input, grad_output = input.to(dtype), grad_output.to(dtype)
        if len(input) != samples:
            input, grad_output = (t.reshape(samples, -1, t.shape[-1]) for t in (input, grad_output))
        if isinstance(use, ConvUse):
            return filter_grad_sq(
                input, grad_output, use.weight.shape, use.stride, use.padding, use.dilation, use.groups
            )
        if isinstance(use, LinearUse):
            return filter_grad_sq(input, grad_output, use.weight.shape)
        # The scale's gradient is Σ_q δ·x̂, one weight a channel; x̂ = (x − μ)·rstd, folded so that x is read once.
        moment = torch.einsum("nchw,nchw->nc", grad_output, input)
        centred = moment - use.running_mean * grad_output.sum((2, 3))
        return (centred * (use.running_var + use.eps).rsqrt()).square()
