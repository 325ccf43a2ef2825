"""Batches of a task's images for a probe, and the device both are on."""

from __future__ import annotations

import warnings
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .._util.progress import progress_bar
from .._util.warnings import Task2VecWarning
from ..data import Batch, batches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from .._util.progress import Pass
    from ..data import Failure, Task
    from ..words import OnError
    from .probe import Probe


@dataclass(frozen=True)
class ImageFeed:
    """A task's images, preprocessed and in batches for one probe, as often as they are needed."""

    task: Task
    probe: Probe
    device: torch.device
    batch_size: int
    num_workers: int
    progress: bool | Pass | None

    @contextmanager
    def batches(
        self, indices: Tensor, what: str, on_error: OnError = "raise", skipped: list[Failure] | None = None
    ) -> Iterator[Iterator[Batch]]:
        """Yield an iterator over batches, all but `index` on the device; workers and bar end with the block."""
        dtype = next((p.dtype for p in self.probe.module.parameters() if p.is_floating_point()), torch.float32)
        loader = batches(
            self.task,
            indices,
            self.probe.preprocess,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            on_error=on_error,
            skipped=skipped,
        )
        with (
            closing(loader),  # type: ignore[type-var]  # a generator
            progress_bar(f"{self.task.name}: {what}", len(indices), self.progress) as advance,
        ):

            def moved_batches() -> Iterator[Batch]:
                for batch in loader:
                    # The images' numbers stay here: what is drawn for them is drawn on the CPU.
                    images, labels = (part.to(self.device, non_blocking=True) for part in (batch.images, batch.labels))
                    yield Batch(batch.index, images.to(dtype), labels)
                    advance(len(batch.index))

            yield moved_batches()


def with_targets(batches: Iterator[Batch], targets: Tensor) -> Iterator[Batch]:
    """Yield the batches with other labels: the targets, in the order of the images."""
    stop = 0
    for batch in batches:
        rows = slice(stop, stop := stop + len(batch.index))
        yield batch._replace(labels=targets[rows].to(batch.images.device, non_blocking=True))


def same_as_before(batches: Iterator[Batch], seen: Batch | None) -> Iterator[Batch]:
    """Yield the batches; warn if the first image differs from the one that was `seen` in an earlier pass."""
    for batch in batches:
        # Ranks that share a task may begin with another image if some were left out.
        if seen and batch.index[0] == seen.index[0] and not torch.equal(batch.images[0], seen.images[0]):
            warnings.warn(
                "the task gives another image each time it is read (a random transform?): the head is fitted on "
                "other images than the Fisher is taken of, and the same seed gives another embedding; use a fixed "
                "transform",
                Task2VecWarning,
                stacklevel=4,
            )
        seen = None
        yield batch


def choose_device(module: nn.Module, device: str | torch.device | None, *, owned: bool) -> torch.device:
    """Return where to run: `device` if given, else where a caller's module is, else a GPU if there is one.

    It has an index if its kind has them. The device of a module that the package made (`owned`) does not count.
    """
    parameter = next(module.parameters(), None)
    if device is None:
        if parameter is not None and not owned:
            return parameter.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.empty(0, device=device).device  # with an index, and only where the machine has it
    except (RuntimeError, AssertionError):  # in torch's words, which say nothing of this machine
        place = None
    if place is not None and place.type == "meta":
        raise ValueError("device: expected a device with memory, got 'meta'; pass device='cpu'.")
    if place is None or place.type not in ("cpu", "cuda"):
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise RuntimeError(
            f"device: expected a device this machine has, got {str(device)!r}; pass one of "
            f"{', '.join(map(repr, here))} (on the command line --device)."
        )
    return place


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move the module to the device inside the block, and back afterwards."""
    parameter = next(module.parameters(), None)
    before = device if parameter is None else parameter.device
    if before == device:
        yield
        return
    try:
        module.to(device)
        yield
    finally:
        module.to(before)
