"""What one process does with a task's images: read, decode, resize, check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._util.atomic import DISK_FULL
from .folder import Files
from .identity import file_key
from .images import is_machines_fault
from .preprocess import Preprocess
from .task import Task


@dataclass(frozen=True)
class Failure:
    """An image that could not be used.

    Args:
        index: Its position in the task.
        where: What messages call it: ``image 12 (cats/a.jpg)``.
        reason: What went wrong.
    """

    index: int
    where: str
    reason: str


class Item(NamedTuple):
    """An image that can be used.

    Args:
        position: In the task.
        image: ``[3, H, W]``: uint8 crop, or float32 input of the probe; None: the cache holds it.
        label: As `Target.prepare` returns it, or a class; None: it is not needed.
        peak: Type and highest value before preprocessing.
    """

    position: int
    image: Tensor | None
    label: Any
    peak: tuple[torch.dtype, float] | None


Wanted = tuple[int, "bytes | None"]
"""An image, and the key of its file as it was when the pass began."""

Outcome = Item | Failure | Exception
"""An exception ends the pass."""


class Unit(NamedTuple):
    """Some images that one process has read; those that can be used are together in two tensors."""

    images: Tensor | None
    labels: Tensor | None
    outcomes: list[tuple[int, tuple[torch.dtype, float] | None] | Failure | Exception]

    def items(self) -> Iterator[Outcome]:
        """Yield what became of each image, in the order wanted."""
        rows = iter(()) if self.images is None or self.labels is None else zip(self.images, self.labels, strict=True)
        for outcome in self.outcomes:
            if isinstance(outcome, tuple):
                image, label = next(rows)
                yield Item(outcome[0], image, label, outcome[1])
            else:
                yield outcome


class Reader(Dataset[Unit]):
    """A task, unit by unit. Failures are returned: an exception would lose the unit and add a worker's traceback."""

    def __init__(self, task: Task, preprocess: Preprocess | None) -> None:
        """Read nothing."""
        self.task, self.preprocess = task, preprocess
        shape = None if preprocess is None else (preprocess.resize, preprocess.crop, preprocess.interpolation)
        self.made = repr((shape, None if preprocess is None else preprocess.decoder, task.max_value))
        """What a crop depends on besides its file."""

    def __getitem__(self, wanted: list[Wanted]) -> Unit:
        """Return what became of these images."""
        good: list[Item] = []
        outcomes: list[Any] = []
        for i, key in wanted:
            outcome = self._outcome(i, key)
            if isinstance(outcome, Item) and good:  # one tensor takes no images of other sizes
                outcome = mismatch(self.task, good[0], outcome) or outcome
            if isinstance(outcome, Item):
                good.append(outcome)
                outcomes.append((outcome.position, outcome.peak))
                continue
            outcomes.append(outcome)
            if isinstance(outcome, Exception):
                break
        if not good:
            return Unit(None, None, outcomes)
        return Unit(
            torch.stack(alike([item.image for item in good], self.preprocess)),
            torch.stack([item.label for item in good]),
            outcomes,
        )

    def _outcome(self, i: int, key: bytes | None) -> Outcome:
        try:
            item = self._item(i)
        except TypeError as error:  # malformed; a data set's own TypeErrors are ValueErrors here, see Task.item
            return TypeError(f"batches: {self.task.describe(i)}: {error}")
        except Exception as error:
            if is_machines_fault(error):
                return _machines_fault(self.task.describe(i), error)
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return Failure(i, self.task.describe(i), reason)
        if isinstance(self.task.source, Files) and file_key(self.task.source.paths[i], self.made) != key:
            return Failure(i, self.task.describe(i), "the file was changed while it was read")
        return item

    def _item(self, index: int) -> Item:
        """An image as an 8-bit crop or as the probe's input, and its target."""
        if self.preprocess is None:
            item, label = self.task.item(index)
            given = image = _as_input(item)
            peak = None
        else:
            given, label = self._given(index, self.preprocess)
            image = self.preprocess.cropped(given)
            peak = (given.dtype, float(given.numpy().max()))  # torch's maximum of bytes takes as long as decoding
            if image.dtype != torch.uint8:
                image = self.preprocess.normalised(image)
        label = self.task.target.prepare(label, given, self.preprocess)
        if image.dtype != torch.uint8 and not torch.isfinite(image).all():
            raise ValueError("batches: expected finite pixels, got NaN or infinity; correct or remove the image.")
        return Item(index, image, label, peak)

    def _given(self, index: int, preprocess: Preprocess) -> tuple[Tensor, Any]:
        if preprocess.decoder == "draft":
            assert isinstance(self.task.source, Files)
            image = self.task.source.image(index, at_least=preprocess.resize)
            return image, self.task.listed_target(index)
        return self.task[index]


def _machines_fault(where: str, error: Exception) -> Exception:
    """The error where memory, file handles or a disk run out."""
    if isinstance(error, OSError):
        advice = "free some space" if error.errno in DISK_FULL else "raise the limit (ulimit -n)"
        return OSError(error.errno, f"batches: could not read {where} ({error.strerror}); {advice}")
    return MemoryError(
        f"batches: expected memory for {where}, got none ({type(error).__name__}: {error}); close other programs, or "
        "take smaller images (image_size) or batches."
    )


def _as_input(image: Any) -> Tensor:
    """A preprocessed image as float32 ``[3, H, W]``."""
    advice = "pass a Preprocess, or make the data set return what the probe takes."
    if not isinstance(image, Tensor) or not image.is_floating_point():
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"expected a float tensor [3, H, W] where preprocess is None, got {got}; {advice}")
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        shape = list(image.shape)
        raise ValueError(f"batches: expected an image [3, H, W] where preprocess is None, got {shape}; {advice}")
    return image.detach().to("cpu", torch.float32)


def alike(images: list[Any], preprocess: Preprocess | None) -> list[Tensor]:
    """Return images of 8 and of more bits as what one tensor takes."""
    if preprocess is None or len({image.dtype for image in images}) == 1:
        return images
    return [preprocess.normalised(image) if image.dtype == torch.uint8 else image for image in images]


def mismatch(task: Task, one: Item, other: Item) -> ValueError | None:
    """Return the error of two images that do not fit into one batch, or None."""
    for kind, ours, theirs, what, advice in (
        ("images", one.image, other.image, " where preprocess is None", "resize them, or pass a Preprocess"),
        ("targets", one.label, other.label, "", "give every image a target of the same size"),
    ):
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.shape != theirs.shape:
            return ValueError(
                f"batches: expected {kind} of one size{what}, got {list(ours.shape)} for {task.describe(one.position)} "
                f"and {list(theirs.shape)} for {task.describe(other.position)}; {advice}."
            )
    return None
