"""A trial: one forward pass of noise through a network, before any image is read.

The graph that autograd builds says where the network's output comes from, and on which weights its features depend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .layers import OUTPUT, is_head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.autograd.graph import Node

_SIDES = (224, 32, 64, 96, 28, 128, 256, 384, 512)  # usual sizes of images, the commonest first
_IMAGES = 2  # with one, a squeeze() would take the batch's axis too

# Steps of autograd's graph, "AddBackward0" without its end. After these, logits are still a head's: reshaped, averaged
# over positions or heads, normalised.
_AFTER_LOGITS = {
    *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Clone", "ToCopy", "Permute", "Transpose"),
    *("Mean", "AvgPool2D", "AdaptiveAvgPool2D", "Add", "Stack", "Div", "Mul"),
    *("Softmax", "LogSoftmax", "Sigmoid", "LogSigmoid"),
}
# After these, what a layer gives may be features as well.
_AFTER_EITHER = _AFTER_LOGITS | {
    *("Relu", "LeakyRelu", "Hardtanh", "Hardswish", "Elu", "Gelu", "Silu", "Tanh", "Softplus"),
    *("LinalgVectorNorm", "Norm", "ClampMin", "Expand", "Cat", "Slice", "Select"),
}
_SECONDARY = re.compile(r"dist|aux")  # heads beside the main one, such as DeiT's "head_dist"
_PROJECTOR = re.compile(r"(^|[._])proj")  # its output is compared between images; it knows no classes


@dataclass
class _Layer:
    """What a layer that may be the head was given and returned, call by call."""

    module: nn.Module
    inputs: list[Tensor] = field(default_factory=list)
    nodes: list[Node | None] = field(default_factory=list)

    @property
    def node(self) -> Node | None:
        """Of its output, if it ran once and was given a vector an image, or a map of them."""
        wanted = 4 if isinstance(self.module, nn.Conv2d) else 2
        usable = len(self.inputs) == 1 and self.inputs[0].ndim == wanted and len(self.inputs[0]) == _IMAGES
        return self.nodes[0] if usable else None


@dataclass(frozen=True)
class Trial:
    """What one forward pass has shown.

    Args:
        image: The leaf that stands for the images.
        output: The tensors that the network returned; its logits if it says which.
        layers: Those that may be a head, by name, and the tap.
    """

    image: Tensor
    output: tuple[Tensor, ...]
    layers: Mapping[str, _Layer]

    def head(self) -> str | None:
        """Return the layer whose output *is* the network's; None if it is not one layer's."""
        sources = [self._sources(tensor) for tensor in self.output]
        found = list(dict.fromkeys(name for names in sources for name in names))
        main = [name for name in found if not _SECONDARY.search(name)] or found
        if len(main) != 1 or not all(sources) or _PROJECTOR.search(main[0]):
            return None
        weight = self.layers[main[0]].module.get_parameter("weight")
        return main[0] if self.output[0][0].numel() == len(weight) else None  # or it is a map without pooling

    def candidates(self) -> list[str]:
        """Return the layers between which the user may choose."""
        found = dict.fromkeys(name for tensor in self.output for name in self._sources(tensor, either=True))
        return [name for name in found if self.may_be_head(name)]

    def may_be_head(self, name: str) -> bool:
        """Whether an output is a layer's, or depends on the images through that layer alone: no gate, no branch."""
        node, image = self.layers[name].node, id(self.image)
        return node is not None and any(
            name in self._sources(tensor) or image not in reached(tensor, around=node)
            for tensor in self.output
            if image in reached(tensor)
        )

    def depends(self, tensor: Tensor | Node | None) -> bool:
        """Whether a gradient of this would reach the images."""
        return id(self.image) in reached(tensor)

    def _sources(self, output: Tensor, *, either: bool = False) -> list[str]:
        """The possible heads that an output comes from, by small steps alone; none if it comes from elsewhere too."""
        heads = {layer.node: name for name, layer in self.layers.items() if is_head(layer.module)}
        todo, found = [output.grad_fn if self.depends(output) else None], []
        while todo:
            node = todo.pop()
            if node is None:
                return []
            if node in heads:
                found.append(heads[node])
                continue
            step = re.sub(r"Backward\d*$", "", node.name())
            before = [n for n, _ in node.next_functions if self.depends(n)]  # others are constants: a temperature
            gated = step in ("Mul", "Div") and len(before) > 1
            if step not in (_AFTER_EITHER if either else _AFTER_LOGITS) or (gated and not either):
                return []
            todo += before or [None]
        return list(dict.fromkeys(found))


class Tried(NamedTuple):
    """What a trial has shown of a probe."""

    unreached: frozenset[str]  # layers by name, on which the features do not depend
    differentiable: bool  # whether a gradient of the features reaches the images
    feature_size: int  # D


def reached(start: Tensor | Node | None, around: Node | None = None) -> set[int]:
    """Return the ids of the leaves that a gradient of `start` reaches, by ways around one node."""
    todo, seen, leaves = [start.grad_fn if isinstance(start, Tensor) else start], {around}, set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            leaves.add(id(node.variable))  # type: ignore[attr-defined]  # of this kind of node
        todo += [before for before, _ in node.next_functions]
    return leaves


@torch.inference_mode(mode=False)
def trial(module: nn.Module, side: int, tap: str = OUTPUT) -> Trial:
    """Return what a forward pass of two square images of noise shows.

    Args:
        module: In eval mode; comes back as it was.
        side: Height and width of the images, pixels.
        tap: A further module to watch.

    Raises:
        Exception: If the network raises one.
    """
    weight = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    noise = torch.randn(_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    image = noise.to(weight).requires_grad_()
    layers = {name: _Layer(child) for name, child in module.named_modules() if is_head(child) or name == tap}

    def watch(layer: _Layer) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            layer.inputs.append(next(iter((*args, *kwargs.values()))))
            layer.nodes.append(output.grad_fn if isinstance(output, Tensor) else None)

        return hook

    with _differentiable(module), torch.autocast(image.device.type, enabled=False), no_randomness_used(image.device):
        handles = [layer.module.register_forward_hook(watch(layer), with_kwargs=True) for layer in layers.values()]
        try:
            # No backward pass follows: nothing is kept for it.
            with torch.autograd.graph.saved_tensors_hooks(_dropped, _dropped):
                output = module(image.clone())
        finally:
            for handle in handles:
                handle.remove()
    if isinstance(output, Mapping) and "logits" in output:  # as Hugging Face's models return them
        output = output["logits"]
    return Trial(image, tuple(tensors(output)), layers)


def _dropped(_: Tensor) -> Any:
    return None


def sides(module: nn.Module) -> list[int]:
    """Return the sizes of square images to try, those that the network itself names first."""
    named = []
    for child in module.modules():
        for key in ("image_size", "img_size", "input_size"):
            value = vars(child).get(key)
            value = value[-1] if isinstance(value, (tuple, list)) and value else value
            if isinstance(value, int) and 0 < value < 2000:
                named.append(value)
    return list(dict.fromkeys([*named, *_SIDES]))


def any_trial(module: nn.Module, first: int | None, tap: str = OUTPUT) -> Trial:
    """Return the trial of the first size of image that the network takes; raise the first error if it takes none."""
    failure: Exception | None = None
    for side in dict.fromkeys([*([first] if first else []), *sides(module)]):
        try:
            return trial(module, side, tap)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a network raises that was made for another size
            failure = failure or error
    assert failure is not None
    raise failure


def default_head(module: nn.Module, first: int | None, who: str) -> str:
    """Return the name of the layer that gives a network's output: a Linear layer, or a 1×1 convolution and pooling.

    Args:
        module: In eval mode.
        first: The side of its images, if known.
        who: The network, for messages.

    Raises:
        ValueError: If the output is not that of one such layer.
    """
    try:
        seen = any_trial(module, first)
    except Exception as error:  # whatever the network raises
        raise ValueError(
            f"load_probe: expected a network that maps images [N, 3, H, W] to an output, but {who} failed with square "
            f"images of every usual size ({one_line(error)}); pass head='NAME', the Linear layer that gives its output."
        ) from None
    if name := seen.head():
        return name
    shapes = [["N", *tensor.shape[1:]] for tensor in seen.output]
    got = ", ".join(str(shape).replace("'", "") for shape in shapes[:3]) or "no tensor"
    if not any(seen.depends(tensor) for tensor in seen.output):
        raise ValueError(
            f"load_probe: expected an output with gradients, but those of {who} ({got}) do not depend on the "
            "images: its forward pass runs under torch.no_grad() or detaches; remove that."
        )
    choices = [f"head={name!r} to refit that layer" for name in seen.candidates()[:5]]
    if len(shapes) == 1 and as_vectors(seen.output[0]) is not None:
        choices.append(f"head={OUTPUT!r} to take its output {got} as the features")
    else:
        choices.append(f"head={OUTPUT!r} after wrapping it to return one vector [N, D], got {got}")
    raise ValueError(
        f"load_probe: expected a network whose output is that of one Linear layer (or 1×1 convolution and average "
        f"pooling), its head; that of {who} is not. Choose with load_probe: {', or '.join(choices)}."
    )


def wrong_size(module: nn.Module, side: int | None, who: str, error: Exception) -> ValueError:
    """Return the error for a network that does not take images of this size, with a size that it takes."""
    try:
        other = any_trial(module, None).image.shape[-1]
        advice = f"it takes {other} × {other}: pass image_size={other}, or build the network for this size"
    except Exception:  # whatever the network raises
        advice = "pass another image_size or preprocess"
    return ValueError(
        f"Probe: expected {who} to take images [N, 3, {side or 'H'}, {side or 'W'}], but its forward pass failed "
        f"({one_line(error)}); {advice}."
    )


def as_vectors(output: Any) -> Tensor | None:
    """Return a network's output ``[N, D]`` or ``[N, D, 1, 1]`` as vectors; None if it is something else."""
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[2:].numel() != 1:
        return None
    return output.flatten(1)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in what a network was given or returned."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value):
        value = [getattr(value, entry.name) for entry in fields(value)]
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def one_line(error: Exception) -> str:
    """Return an error's type and the first line of its text."""
    text = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """Let every weight be part of the graph inside the block."""
    frozen = [p for p in module.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def no_randomness_used(device: torch.device) -> Iterator[None]:
    """Give torch's global generators back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
