"""The parts of a network by name: the layers whose filters an embedding describes, and the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

LayerKind = Literal["conv", "linear", "batchnorm"]

Head: TypeAlias = "nn.Linear | nn.Conv2d"

OUTPUT = "features"
"""The head of a network without one: its output is the feature vector. A Linear layer of that name goes first."""


@dataclass(frozen=True)
class Layer:
    """The part of an embedding that belongs to one layer of the probe.

    Args:
        name: The module's name in the probe, e.g. ``"layer1.0.conv1"``; for an attention's packed in-projection, its
            module's name and ``".in_proj"``.
        kind: What the module is.
        start: First index of its filters in the embedding.
        stop: One past the last.
        fan_in: Weights per filter, P = (C_in / groups)·kH·kW; 1 for BatchNorm.
    """

    name: str
    kind: LayerKind
    start: int
    stop: int
    fan_in: int


def named_filters(module: nn.Module, include_batchnorm: bool = False) -> Iterator[tuple[str, LayerKind]]:
    """Yield (name, kind) of every layer whose weight has filters as rows, in the module's order.

    The packed in-projection of an ``nn.MultiheadAttention`` (the parameter ``in_proj_weight``, ``[3·D, D]``: queries,
    keys, values) is ``"….in_proj"``. A BatchNorm2d has one weight a channel.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            yield name, "conv"
        elif isinstance(child, nn.Linear):
            yield name, "linear"
        elif isinstance(child, nn.MultiheadAttention) and child.in_proj_weight is not None:
            yield f"{name}.in_proj".removeprefix("."), "linear"
        elif include_batchnorm and isinstance(child, nn.BatchNorm2d) and child.affine:
            yield name, "batchnorm"


def filter_weight(module: nn.Module, name: str) -> nn.Parameter:
    """Return the weight of a layer, ``[C_out, …]``, by its name in `named_filters`."""
    owner, _, last = name.rpartition(".")
    packed = last == "in_proj" and isinstance(module.get_submodule(owner), nn.MultiheadAttention)
    module.get_submodule(owner if packed else name)  # or no such layer, which is another error
    try:
        return module.get_parameter(f"{name}_weight" if packed else f"{name}.weight")
    except AttributeError:
        raise NotImplementedError(
            f"Probe: expected the weight of {name!r} as a parameter of its own, got one computed from others "
            "(weight_norm, spectral_norm or another parametrization); make it one with "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') or "
            "torch.nn.utils.remove_weight_norm(layer), or pass layers=[…] with the others."
        ) from None


def layer_parameters(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Return the parameters of a layer by its name in `named_filters`, also where its weight is computed from them."""
    owner, _, last = name.rpartition(".")
    if last == "in_proj" and isinstance(attention := module.get_submodule(owner), nn.MultiheadAttention):
        return [attention.in_proj_weight]
    return list(module.get_submodule(name).parameters())


def undescribed(module: nn.Module) -> Iterator[str]:
    """Yield "name (type)" of the modules with weights that an embedding has no entries for.

    These are transposed, 1-D and 3-D convolutions, separate query, key and value projections, and embeddings. Class
    tokens, tables of positions and LayerScale belong to no layer and do not count.
    """
    described = {name.removesuffix("in_proj").removesuffix(".") for name, _ in named_filters(module)}
    for name, child in module.named_modules():
        own = child.named_parameters(recurse=False)
        if name not in described and any("weight" in key and weight.dim() > 1 for key, weight in own):
            yield f"{name} ({type(child).__name__})"


def is_head(module: nn.Module | None) -> bool:
    """Whether this can be a head: a Linear layer, or a convolution that is one at every position."""
    if isinstance(module, nn.Conv2d):
        plain = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        return plain and module.padding in ((0, 0), "valid", "same")
    # An attention's out-projection is a Linear layer that is not called.
    return isinstance(module, nn.Linear) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def head_layer(module: nn.Module, name: str) -> Head | None:
    """Return the layer of that name; None if the head is the output itself, `OUTPUT`."""
    found = dict(module.named_modules()).get(name)
    if name == OUTPUT and not isinstance(found, nn.Linear):
        return None
    if found is None or not name:
        raise ValueError(
            f"Probe: expected a module named {name!r} as head, found none; leave head out and it is looked for."
        )
    if not is_head(found):
        raise TypeError(
            f"Probe: expected the head {name!r} to be an nn.Linear or a 1×1 convolution, got {type(found).__name__}; "
            f"leave head out and it is looked for, or pass head={OUTPUT!r} if the network's output is the features."
        )
    return found


def find_head(module: nn.Module, name: str) -> nn.Linear:
    """Return the Linear layer of that name."""
    head = head_layer(module, name)
    if not isinstance(head, nn.Linear):
        got = "the network's output" if head is None else "a convolution"
        raise TypeError(f"Probe: expected the head to be an nn.Linear, got {got} ({name!r}); embeddings alone take it.")
    return head


def within(name: str, prefix: str) -> bool:
    """Whether a module or parameter is the one called `prefix`, or in it."""
    return name == prefix or name.startswith(prefix + ".")
