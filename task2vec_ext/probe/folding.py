"""The same network, faster: BatchNorm folded into the convolutions before it, weights channels-last.

On a GPU, bias, sum with a shortcut and ReLU that follow a convolution are one pass over its output (`bias_relu`).

In eval mode a BatchNorm multiplies filter o by a constant s_o and adds another, so ``w̃_o = s_o·w_o`` computes the same,
and ``∂L/∂w_o = s_o·∂L/∂w̃_o``: the Fisher of the original weights is s_o² times that of the folded ones, exactly.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..kernels.bias_relu import bias_relu
from .probe import Probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from .layers import Layer

_M = TypeVar("_M", nn.Conv2d, nn.BatchNorm2d)

_RELUS = F.relu, torch.relu, torch.relu_, "relu", "relu_"
_SUMS = operator.add, operator.iadd, torch.add, "add", "add_"

AGREEMENT = 1e-2
"""Largest difference between the two networks' features, relative to the largest feature. Rounding in TF32 stays well
below it; a network that computes something else is far above."""


@dataclass(frozen=True, eq=False)
class FoldedProbe(Probe):
    """A probe whose convolutions carry the BatchNorm that followed them; the network it was made from is untouched.

    Args:
        scale: The factors s of every folded convolution by its name, ``[C_out]``.
    """

    scale: Mapping[str, Tensor]

    def features(self, images: Tensor) -> Tensor:
        """Return what the original network's head sees; see `Probe.features`."""
        return super().features(images.contiguous(memory_format=torch.channels_last))


def fold(probe: Probe, layers: Sequence[Layer], images: Tensor, *, fuse: bool | None = None) -> Probe:
    """Return a faster probe that computes the same features; `probe` is left as it is.

    The result shares its modules, with copies of the convolutions' weights; a BatchNorm among `layers` is not folded.
    It is `probe` itself if torch.fx cannot trace the network, or the two do not agree on `images` ``[B, 3, H, W]``.
    With `fuse`, the default on a GPU, `bias_relu` takes the place of what follows convolutions; the CPU's add their
    bias themselves.
    """
    if isinstance(probe, FoldedProbe):
        return probe
    kept = {layer.name for layer in layers if layer.kind == "batchnorm"}
    images = torch.cat([images, images])  # a trace may hold the number of images
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        # In bfloat16 two networks that compute the same would not agree.
        expected = replace(probe, dtype="float32").features(images[: len(images) // 2])
        try:
            folded = _folded(probe, _Tracer(probe.pool).trace(probe.module), kept)
            if images.is_cuda if fuse is None else fuse:
                _fuse(folded.module)
            actual = replace(folded, dtype="float32").features(images)
            error = (actual - torch.cat([expected, expected])).abs().max()
        except Exception:  # there is no list of what tracing can raise; an untraceable network runs as it is
            return probe
    return folded if error <= AGREEMENT * expected.abs().max() else probe


class _Tracer(fx.Tracer):
    """A tracer that keeps every layer with filters, subclasses too, and the pool as one node of the graph."""

    def __init__(self, pool: str | None) -> None:
        super().__init__()
        self.pool = pool

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)) or module_qualified_name == self.pool
        return layer or super().is_leaf_module(m, module_qualified_name)


def _folded(probe: Probe, graph: fx.Graph, kept: set[str]) -> FoldedProbe:
    modules, calls = dict(probe.module.named_modules()), [node.target for node in graph.nodes]
    network = fx.GraphModule(probe.module, graph)
    scale: dict[str, Tensor] = {}

    def called(node: fx.Node) -> nn.Module | None:  # if no other node calls it
        once = node.op == "call_module" and calls.count(node.target) == 1
        return modules.get(str(node.target)) if once else None

    for node in list(graph.nodes):
        conv, name = called(node), str(node.target)
        if not _is_plain(conv, nn.Conv2d):
            continue
        weight, bias = conv.weight.detach(), conv.bias
        after = next(iter(node.users)) if len(node.users) == 1 else None
        norm = called(after) if after is not None and after.target not in kept else None
        if after is not None and _is_plain(norm, nn.BatchNorm2d):
            factor, shift = _affine(norm)
            scale[name] = factor
            weight = weight * factor[:, None, None, None]
            bias = shift if conv.bias is None else shift + factor * conv.bias.detach()
            after.replace_all_uses_with(node)
            graph.erase_node(after)
        network.set_submodule(name, _like(conv, weight, bias))
    network.delete_all_unused_submodules()
    network.recompile()
    network.eval()  # the containers that GraphModule makes; what it shares is in eval mode already
    same = {name: getattr(probe, name) for name in ("head", "name", "weights", "preprocess", "pool", "dtype")}
    return FoldedProbe(network, scale=scale, **same)


class _BiasReLU(nn.Module):
    """The bias of a convolution, with all that follows it up to the ReLU."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias.detach())

    def forward(self, output: Tensor, other: Tensor | None = None) -> Tensor:
        return bias_relu(output, self.get_buffer("bias"), other)


def _fuse(network: nn.Module) -> None:
    """Let `bias_relu` do what follows a convolution of `_folded`, wherever nothing else sees its output."""
    assert isinstance(network, fx.GraphModule)
    graph, modules = network.graph, dict(network.named_modules())
    calls = [node.target for node in graph.nodes]

    def only(node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def is_relu(node: fx.Node | None) -> TypeGuard[fx.Node]:
        if node is None or node.op != "call_module":
            return node is not None and node.target in _RELUS
        module = modules.get(str(node.target))
        return type(module) is nn.ReLU and not (module._forward_hooks or module._forward_pre_hooks)

    for number, node in enumerate(list(graph.nodes)):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not _is_plain(conv, nn.Conv2d) or conv.bias is None or calls.count(node.target) > 1:
            continue
        after, others = only(node), []
        if after is not None and after.op != "call_module" and after.target in _SUMS and not after.kwargs:
            others = [other for other in after.args if other is not node]
            after = only(after) if len(others) == 1 and isinstance(others[0], fx.Node) else None
        if not is_relu(after):
            continue
        network.add_submodule(f"bias_relu_{number}", _BiasReLU(conv.bias).eval())
        conv.bias = None  # `_folded` has made it
        with graph.inserting_before(after):
            fused = graph.call_module(f"bias_relu_{number}", (node, *others))
        after.replace_all_uses_with(fused)
        graph.erase_node(after)
        for total in [user for user in node.users if user is not fused]:
            graph.erase_node(total)
    network.delete_all_unused_submodules()
    network.recompile()


def _is_plain(module: nn.Module | None, kind: type[_M]) -> TypeGuard[_M]:
    """Whether the module is of exactly this type (a subclass may compute something else) and has no hooks."""
    if type(module) is not kind:
        return False
    weight = module.weight
    wide = weight is None or weight.dtype in (torch.float32, torch.float64)  # a product in 16 bits would round
    return wide and not (module._forward_hooks or module._forward_pre_hooks)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return (factor, shift) of each channel."""
    assert norm.running_mean is not None  # check_eval refuses others
    assert norm.running_var is not None
    factor = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach()
    shift = -norm.running_mean * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach()


def _like(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a convolution of `conv`'s kind with other, channels-last weights."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    options: dict[str, Any] = {name: getattr(conv, name) for name in names}
    other = nn.Conv2d(**options, bias=bias is not None, device="meta").eval()
    other.weight = nn.Parameter(weight.to(memory_format=torch.channels_last, copy=True), requires_grad=False)
    if bias is not None:
        other.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return other
