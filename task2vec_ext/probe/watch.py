"""A watch over a network's weights that ends with its context manager.

A layer is identified by its weight, not by its module: every torch function that reads the weight is seen, whether the
layer's module calls it, a subclass, or a function that was passed the weight. Each weight must be used once and in a
supported way; anything else is refused with the layer's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .attention import self_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


# The fields are the parameters of the torch functions, so that calls bind as theirs do.
class ConvUse(NamedTuple):
    """A weight in ``conv2d``."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class LinearUse(NamedTuple):
    """A weight in ``linear``."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None


class BatchNormUse(NamedTuple):
    """A weight in ``batch_norm``."""

    input: Tensor
    running_mean: Tensor
    running_var: Tensor
    weight: Tensor
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


Use: TypeAlias = ConvUse | LinearUse | BatchNormUse
_USES: dict[Any, type[Use]] = {F.conv2d: ConvUse, F.linear: LinearUse, F.batch_norm: BatchNormUse}


class Watch(TorchFunctionMode):
    """Sees every torch function that is given one of the weights, in one forward pass.

    Args:
        weights: Parameters by the names of their layers.
        follow: Given a layer's name, its use and its output, returns what the network goes on with.
    """

    def __init__(self, weights: Mapping[str, Tensor], follow: Callable[[str, Use, Tensor], Tensor]) -> None:
        """Keep the weights, so that no other tensor gets one of their ids."""
        super().__init__()
        self._weights = weights
        self._names = {id(weight): name for name, weight in weights.items()}
        self._follow = follow
        self._ran: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; follow it if it reads a weight."""
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
        if names[0] in self._ran:
            raise NotImplementedError(
                f"capture: layer {names[0]!r} ran twice in one forward pass, or another layer shares its weight; the "
                "per-sample gradient of a reused weight is not the sum of its parts squared. Pass layers=[…] with the "
                "others."
            )
        self._ran.add(names[0])
        return self._follow(names[0], use, output)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among a call's values, and in its lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
