"""Whether a network gives the same features for the same image: none may be random in eval mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .trial import no_randomness_used, tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .probe import Probe

ROUNDING = 1e-5
"""Largest difference relative to the largest value, for float32: threads may add in another order."""

_MOST = 12
"""Passes, and copies of the image in each, of a network that draws random numbers: where they matter for one image in
twenty, all agree by chance once in 1,600 times."""


def check_repeatable(probe: Probe, images: Tensor) -> None:
    """Raise ValueError unless the network gives the same features for the same images, several times.

    Args:
        probe: In eval mode.
        images: ``[B, 3, H, W]``, preprocessed; one will do.
    """
    device = images.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False), no_randomness_used(device):
        state = _generators(device)
        first = probe.features(images)
        drew = any(not torch.equal(a, b) for a, b in zip(state, _generators(device), strict=True))
        if drew:
            images = images.repeat(_MOST, 1, 1, 1)  # an image seldom drawn for is among them
            first = probe.features(images)
        for _ in range(_MOST - 1 if drew else 1):
            if not _same(first, probe.features(images)):
                break
        else:
            return
        name = _random_module(probe.module, images)
    if name is None:
        where = "one of its modules, or what it remembers of earlier images,"
    elif name:
        where = f"{name!r} ({type(probe.module.get_submodule(name)).__name__})"
    else:
        where = f"the forward of {type(probe.module).__name__} itself"
    raise ValueError(
        f"Probe: expected {probe.name} to give the same features for the same image, but they differ from pass to pass "
        f"in eval mode: {where} gives another output each time. Turn its dropout or noise off (F.dropout needs "
        "training=self.training)."
    )


def _generators(device: torch.device) -> list[Tensor]:
    """The states of torch's global generators."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.random.get_rng_state(), *cuda]


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    if not first.is_floating_point() or not first.numel():
        return torch.equal(first, second)
    tolerance = max(ROUNDING, 4 * torch.finfo(first.dtype).eps) * first.abs().max()
    return not bool(((first - second).abs() > tolerance).any())  # NaN is told of elsewhere


def _random_module(module: nn.Module, images: Tensor) -> str | None:
    """Return the innermost module that gave two outputs for one input; None if none was seen to."""
    Call = tuple[str, list[Tensor], list[Tensor]]

    def calls() -> list[Call]:
        seen: list[Call] = []

        def watch(name: str) -> Any:
            given: list[list[Tensor]] = []  # a module may change its input in place, and call itself

            def before(_: nn.Module, args: Any, kwargs: Any) -> None:
                given.append([part.clone() for part in tensors([args, kwargs])])

            def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                seen.append((name, given.pop(), [part.clone() for part in tensors(output)]))

            return before, after

        handles = []
        for name, child in module.named_modules():
            before, after = watch(name)
            handles.append(child.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(child.register_forward_hook(after, with_kwargs=True))
        try:
            module(images)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def all_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
        return len(one) == len(other) and all(map(_same, one, other))

    first = calls()
    for _ in range(_MOST):
        # A module ends before the one that calls it: the first that differs is the innermost.
        for (name, given, returned), (again, given_again, returned_again) in zip(first, calls(), strict=False):
            if name != again:
                break
            if all_same(given, given_again) and not all_same(returned, returned_again):
                return name
    return None
