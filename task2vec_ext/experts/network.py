"""A network at work: on which device, in which precision, and how images reach it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

import torch

from ..probe.feed import ImageFeed, choose_device

if TYPE_CHECKING:
    from .._util.progress import Pass
    from ..data import Task
    from ..probe.probe import Probe


class RunOptions(TypedDict, total=False):
    """How the work is done. Results depend on it by rounding alone."""

    device: str | torch.device | None
    """Where networks run; default: CUDA where there is one."""
    dtype: torch.dtype | None
    """Of the forward pass (autocast); default: bfloat16 on a GPU that has it, else float32."""
    num_workers: int
    """Processes that decode images; default: 0, this one."""
    progress: bool | Pass | None
    """Show progress bars; default: where standard error is a terminal."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network on its device.

    Args:
        probe: The network, channels-last.
        device: Where it is.
        autocast: Context of a forward pass, for any number of passes.
        num_workers: Processes that decode images.
        progress: As in `RunOptions`.
    """

    probe: Probe
    device: torch.device
    autocast: torch.autocast
    num_workers: int
    progress: bool | Pass | None

    @classmethod
    def of(
        cls,
        probe: Probe,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        num_workers: int = 0,
        progress: bool | Pass | None = None,
    ) -> Network:
        """Return the network of a probe, whose module is moved to the device."""
        place = choose_device(probe.module, device, owned=True)
        if dtype is None:
            fast = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = torch.bfloat16 if fast else torch.float32
        autocast = torch.autocast(place.type, dtype, enabled=dtype != torch.float32)
        # Channels-last is 1.7 times as fast on a CPU (ResNet-18, 96 px), and what tensor cores want.
        module = probe.module.to(place).to(memory_format=torch.channels_last)
        return cls(replace(probe, module=module), place, autocast, num_workers, progress)

    def feed(self, task: Task, batch_size: int) -> ImageFeed:
        """Return a task's images on their way to the network."""
        return ImageFeed(task, self.probe, self.device, batch_size, self.num_workers, self.progress)
