"""A network at work: on which device, in which precision, and how images reach it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import torch

from .._util.progress import Pass
from .._util.warnings import Task2VecWarning
from .._util.words import check_word
from ..data import Failure, Task
from ..probe.feed import ImageFeed, choose_device
from ..probe.probe import Probe
from ..words import OnError

_NAMED = 10  # images that a warning names


class RunOptions(TypedDict, total=False):
    """How the work is done. Results depend on it by rounding alone."""

    device: str | torch.device | None
    """Where networks run; default: CUDA where there is one."""
    dtype: torch.dtype | None
    """Of the forward pass (autocast); default: bfloat16 on a GPU that has it, else float32."""
    num_workers: int
    """Processes that decode images; default: 0, this one."""
    progress: bool | Pass | None
    """Show progress; default: where standard error is a terminal."""
    on_error: OnError
    """An image that cannot be read raises, or is left out and warned of (``"skip"``)."""


class Network:
    """A network on its device, channels-last, and the context of its forward passes (`autocast`)."""

    def __init__(
        self,
        probe: Probe,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        num_workers: int = 0,
        progress: bool | Pass | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """Move the probe's module to the device."""
        check_word("RunOptions", "on_error", on_error, OnError)
        self.on_error: OnError = on_error
        self.device = choose_device(probe.module, device, owned=True)
        if dtype is None:
            fast = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = torch.bfloat16 if fast else torch.float32
        self.autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        # Channels-last is 1.7 times as fast on a CPU (ResNet-18, 96 px), and what tensor cores want.
        self.probe = replace(probe, module=probe.module.to(self.device).to(memory_format=torch.channels_last))
        self._num_workers, self._progress = num_workers, progress

    def warn_of(self, skipped: Sequence[Failure], task: Task) -> None:
        """Warn of images that were left out."""
        if skipped:
            named = [f"{failure.where}: {failure.reason}" for failure in skipped[:_NAMED]]
            listed = "; ".join([*named, "…"] if len(skipped) > _NAMED else named)
            warnings.warn(
                f"left out {len(skipped)} of {len(task)} images of {task.name!r} that cannot be read: {listed}",
                Task2VecWarning,
                stacklevel=3,
            )

    def feed(self, task: Task, batch_size: int) -> ImageFeed:
        """Return a task's images on their way to the network."""
        return ImageFeed(task, self.probe, self.device, batch_size, self._num_workers, self._progress)
