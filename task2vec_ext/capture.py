"""From a backward pass to per-sample squared gradients: a watch over the weights that ends with its context manager.

A layer is known by its weight, not by its module: whatever torch function reads the weight is seen, be it called by the
layer's own module, by a subclass that does more, or by a function that was handed the weight. So a weight is used once,
in a way whose per-sample gradient is known, or refused by name.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ._attention import self_attention
from ._network import filter_weight
from .ops import filter_grad_sq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

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
def capture(module: nn.Module, layers: Sequence[Layer], samples: int) -> Iterator[Captured]:
    """Yield a `Captured` that holds the layers' per-sample squared gradients after each backward pass.

    For one forward pass of `module` and any number of backward passes through it. Every parameter must be frozen
    (`frozen` in probe.py): autograd then runs no weight gradient, and the graph starts at the first layer's output. A
    loss summed over samples gives true per-sample values.

    Args:
        module: the probe's network, in eval mode.
        layers: as `Probe.layers` returns them.
        samples: B, of the forward pass.

    Yields:
        The values' holder.
    """
    captured = Captured(layers)
    with _Watch({layer.name: filter_weight(module, layer.name) for layer in layers}, captured, samples):
        yield captured


class _Use(NamedTuple):
    """One layer at work."""

    weight: Tensor
    input: Tensor
    grad_sq: Callable[[Tensor, Tensor], Tensor]
    """From input and gradient of the output to ``[B, C_out]``."""


# The parameters are those of the torch functions, so that calls bind as theirs do.
def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Use:
    return _Use(
        weight, input, lambda x, delta: filter_grad_sq(x, delta, weight.shape, stride, padding, dilation, groups)
    )


def _linear(input: Tensor, weight: Tensor, bias: Any = None) -> _Use:
    return _Use(weight, input, lambda x, delta: filter_grad_sq(x, delta, weight.shape))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Use:
    def grad_sq(x: Tensor, delta: Tensor) -> Tensor:
        # The scale's gradient is Σ_q δ·x̂, one weight a channel; x̂ = (x − μ)·rstd, folded so that x is read once.
        moment = torch.einsum("nchw,nchw->nc", delta, x)
        return ((moment - running_mean * delta.sum((2, 3))) * (running_var + eps).rsqrt()).square()

    return _Use(weight, input, grad_sq)


_USES: dict[Any, Callable[..., _Use]] = {F.conv2d: _conv2d, F.linear: _linear, F.batch_norm: _batch_norm}


class _Watch(TorchFunctionMode):
    """Sees every torch function that is given one of the weights."""

    def __init__(self, weights: dict[str, nn.Parameter], captured: Captured, samples: int) -> None:
        super().__init__()
        self._weights = weights  # kept, so that no other tensor gets one of the ids
        self._names = {id(weight): name for name, weight in weights.items()}
        self._captured = captured
        self._samples = samples
        self._ran: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = [self._names[id(tensor)] for tensor in _tensors((*args, *kwargs.values())) if id(tensor) in self._names]
        if not names:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:  # its projections are Linear layers
                return self_attention(names[0], *args, **kwargs)
        output = func(*args, **kwargs)
        if output is not None and next(_tensors((output,)), None) is None:  # the weight's shape, its type
            return output
        use = _USES[func](*args, **kwargs) if func in _USES else None
        if use is None or names != [self._names.get(id(use.weight))]:
            raise NotImplementedError(
                f"capture: expected the weight of {names[0]!r} to be used by a Conv2d or Linear layer as it is, got it "
                f"in {getattr(func, '__name__', func)}(…); pass layers=[…] with the others."
            )
        return self._follow(names[0], use, output)

    def _follow(self, name: str, use: _Use, output: Tensor) -> Tensor:
        """Return `output`, whose gradient will be put among the captured."""
        if name in self._ran:
            raise NotImplementedError(
                f"capture: layer {name!r} ran twice in one forward pass, or another layer shares its weight; the "
                "per-sample gradient of a reused weight is not the sum of its parts squared. Pass layers=[…] with the "
                "others."
            )
        self._ran.add(name)
        input, samples = use.input.detach(), self._samples
        version = input._version
        # A Linear layer may see a picture in parts, such as Swin's windows.
        if input.dim() < 2 or (len(input) % samples if use.weight.dim() == 2 else len(input) != samples):
            raise NotImplementedError(
                f"capture: expected the input of layer {name!r} to hold the batch's {samples} pictures along its first "
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
            self._captured.put(name, _grad_sq(use, input, grad_output, samples))

        # On the tensor, not on the module: module backward hooks break on the in-place ReLU that may follow.
        output.register_hook(backward_hook)
        return output


def _grad_sq(use: _Use, input: Tensor, grad_output: Tensor, samples: int) -> Tensor:
    """Return ``[B, C_out]`` for one layer."""
    with torch.no_grad():
        # Under autocast the layer itself computed in a narrower type than its input's; the CPU's loops take no 16 bits.
        dtype = grad_output.dtype
        if input.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32
        input, grad_output = input.to(dtype), grad_output.to(dtype)
        if len(input) != samples:
            input, grad_output = (t.reshape(samples, -1, t.shape[-1]) for t in (input, grad_output))
        return use.grad_sq(input, grad_output)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among a call's values, and in its lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
