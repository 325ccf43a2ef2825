"""The parts of a network by name: the layers whose filters an embedding describes, and the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

LayerKind = Literal["conv", "linear", "batchnorm"]

_HEAD_NAMES = ("fc", "head", "classifier")  # common names come first: the last Linear layer may be another


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
    try:
        return module.get_parameter(f"{name}_weight" if packed else f"{name}.weight")
    except AttributeError:
        raise NotImplementedError(
            f"Probe: expected the weight of {name!r} as a parameter of its own, got one computed from others "
            "(weight_norm, spectral_norm or another parametrization); make it one with "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') or "
            "torch.nn.utils.remove_weight_norm(layer), or pass layers=[…] with the others."
        ) from None


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


def default_head(module: nn.Module) -> str:
    """Return the name of the Linear layer that gives a network's output.

    It is ``fc``, ``head`` or ``classifier`` if that is a Linear layer, else the last one registered (``classifier.6``
    of a VGG, ``heads.head`` of a ViT).
    """
    for name in _HEAD_NAMES:
        if isinstance(getattr(module, name, None), nn.Linear):
            return name
    if linear := linear_layers(module):
        return linear[-1]
    raise ValueError(
        f"load_probe: expected a network that ends in a Linear layer, its head, got {type(module).__name__} without "
        "one; append the pooling that its output needs and a Linear layer."
    )


def find_head(module: nn.Module, name: str) -> nn.Linear:
    """Return the Linear layer of that name."""
    try:
        head = module.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"Probe: expected a module named {name!r} as head, found none; Linear layers: "
            f"{', '.join(linear_layers(module)) or 'none'}."
        ) from None
    if not isinstance(head, nn.Linear):
        raise TypeError(f"Probe: expected the head {name!r} to be an nn.Linear, got {type(head).__name__}.")
    return head


def linear_layers(module: nn.Module) -> list[str]:
    """Return the names of all Linear layers except attention's out-projections, none of which is a head."""
    attention = nn.modules.linear.NonDynamicallyQuantizableLinear
    linear = {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    return [name for name, child in linear.items() if not isinstance(child, attention)]
