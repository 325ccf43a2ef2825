"""Batches of a task's images for a probe, and the device both are on."""

from __future__ import annotations

import os
import warnings
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import torch

from .._util.progress import progress_bar
from .._util.warnings import Task2VecWarning
from ..data import Batch, Files, Loader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from torch import Tensor, nn

    from .._util.progress import Pass
    from ..data import Failure, ImageCache, Task
    from ..words import OnError
    from .probe import Probe

_MOST_WORKERS = 32
"""Processes that feed one GPU at most: they decode as much as the process that puts batches together can copy."""


class ImageFeed:
    """A task's images, preprocessed and in batches for one probe, as often as they are needed.

    Args:
        task: The task.
        probe: For which the images are preprocessed.
        device: Where the batches are wanted.
        batch_size: Images in a batch.
        num_workers: Processes that decode; None: this GPU's share of the cores, and none for the CPU.
        progress: Show a bar for each pass.
        cache: Keeps decoded images for later passes; default: they are decoded in every pass.
    """

    def __init__(
        self,
        task: Task,
        probe: Probe,
        device: torch.device,
        batch_size: int,
        num_workers: int | None = 0,
        progress: bool | Pass | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        """Read nothing."""
        self.task, self.probe, self.device, self.batch_size = task, probe, device, batch_size
        self._progress = progress
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._loader = Loader(
            task,
            probe.preprocess,
            batch_size=batch_size,
            num_workers=default_workers(device) if num_workers is None else num_workers,
            pin_memory=device.type == "cuda",
            cache=cache,
        )

    def __enter__(self) -> ImageFeed:
        """Return the feed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes that decode."""
        self._loader.close()

    @contextmanager
    def batches(
        self,
        indices: Tensor,
        what: str,
        on_error: OnError = "raise",
        skipped: list[Failure] | None = None,
        targets: Tensor | None = None,
    ) -> Iterator[Iterator[Batch]]:
        """Yield an iterator over batches, all but `index` on the device; the bar ends with the block.

        Args:
            indices: ``[n]``, which images, in the order wanted.
            what: Named by the bar.
            on_error: See `data.batches`.
            skipped: See `data.batches`.
            targets: ``[n, …]`` the batches' labels; default: the task's own.
        """
        loader = self._loader.batches(indices, on_error=on_error, skipped=skipped, targets=targets)
        with (
            closing(loader),  # type: ignore[type-var]  # a generator
            progress_bar(f"{self.task.name}: {what}", len(indices), self._progress) as advance,
        ):

            def moved_batches() -> Iterator[Batch]:
                for batch in loader:
                    # The images' numbers stay here: what is drawn for them is drawn on the CPU.
                    images, labels = self._moved(batch.images, batch.labels)
                    yield Batch(batch.index, self._ready(images), labels)
                    advance(len(batch.index))

            yield moved_batches()

    def warn_if_restless(self, seen: Batch | None) -> None:
        """Warn if an image that was `seen` in an earlier pass is another one when it is read again.

        Files are not: the loader names those that change.
        """
        if seen is None or isinstance(self.task.source, Files):
            return
        again = self._ready(self._loader.read_again(int(seen.index[0])).to(self.device))
        if not torch.equal(again, seen.images[0]):
            warnings.warn(
                "the task gives another image each time it is read (a random transform?): the embedding is of what the "
                "first pass saw, and the same seed gives another one; use a fixed transform",
                Task2VecWarning,
                stacklevel=3,
            )

    def _moved(self, *parts: Tensor) -> list[Tensor]:
        """Tensors on the device; to a GPU they are copied while it computes."""
        if self._side is None:
            return [part.to(self.device) for part in parts]
        with torch.cuda.stream(self._side):
            moved = [part.to(self.device, non_blocking=True) for part in parts]
        here = torch.cuda.current_stream(self.device)
        here.wait_stream(self._side)
        for part in moved:
            part.record_stream(here)  # its memory belongs to the side stream
        return moved

    def _ready(self, images: Tensor) -> Tensor:
        """What the probe takes: normalised, in the type of its weights."""
        if images.dtype == torch.uint8:
            assert self.probe.preprocess is not None  # or there are no bytes
            images = self.probe.preprocess.normalised(images)
        parameters = self.probe.module.parameters()
        return images.to(next((p.dtype for p in parameters if p.is_floating_point()), torch.float32))


def default_workers(device: torch.device) -> int:
    """Return how many processes decode for a device: a GPU's share of the cores; none for the CPU, which they share."""
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // torch.cuda.device_count(), 1), _MOST_WORKERS)


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
