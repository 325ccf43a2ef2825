"""Batches: a task's images in order, decoded, preprocessed and checked by any number of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..words import OnError
from .folder import Files
from .images import is_machines_fault
from .preprocess import Preprocess
from .range import RangeCheck
from .task import Task, check_indices


class Batch(NamedTuple):
    """Some images of a task, ready for the probe.

    Attributes:
        index: ``[B]`` int64, the images' positions in the task.
        images: ``[B, 3, H, W]`` float32.
        labels: ``[B]`` int64 classes, or ``[B, …]`` for other targets.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    images: Tensor
    labels: Tensor


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


class _Item(NamedTuple):
    position: int
    image: Tensor
    label: Tensor


class _Chunk(NamedTuple):
    """What the process that reads a batch returns."""

    batch: Batch | None  # None: no image of it can be used
    failures: list[Failure]
    error: Exception | None = None  # raised with on_error="skip" too
    peaks: tuple[
        tuple[torch.dtype, float], ...
    ] = ()  # of each usable image: its type and highest value, before preprocessing


def batches(
    task: Task,
    indices: Tensor | Sequence[int],
    preprocess: Preprocess | None,
    *,
    batch_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    on_error: OnError = "raise",
    skipped: list[Failure] | None = None,
) -> Iterator[Batch]:
    """Return an iterator over batches of a task's images.

    It holds at most ``batch_size · (2 · num_workers + 1)`` images at a time, ends its processes however it ends, and
    does not touch torch's global random state.

    Args:
        task: The task.
        indices: ``[n]`` positions of the images in the task, in the order wanted.
        preprocess: Applied to every image; None where the task's images already are the probe's input: float tensors
            ``[3, H, W]`` of one size.
        batch_size: Images in a batch. The last batch, and one with skipped images, may have fewer.
        num_workers: Processes that read; 0 reads in this one. The batches are the same, bit for bit.
        pin_memory: Whether to page-lock the batches for copies to a CUDA GPU; ignored where there is none.
        on_error: ``"raise"`` or ``"skip"``: what to do with an image that cannot be used.
        skipped: Receives the `Failure` of every skipped image.

    Raises:
        ValueError: If an argument is impossible (at once), or an image cannot be read, is not finite or has a wrong
            shape (with its batch). The message has the image and the reason.
        TypeError: If an item of the task is not a pair of an image and a target of the task's kind.

    Note:
        Images of different sizes without a ``preprocess``, a malformed task, images that are nearly black in all their
        pixels (see `RangeCheck`) and lack of memory or file handles raise with ``on_error="skip"`` too: skipping would
        silently drop an arbitrary part of the task.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            f"batches: expected batch_size ≥ 1 and num_workers ≥ 0, got {batch_size} and {num_workers}; correct them."
        )
    if on_error not in ("raise", "skip"):
        raise ValueError(f'batches: expected on_error "raise" or "skip", got {on_error!r}; choose one of them.')
    wanted = check_indices(task, indices, who="batches").tolist()
    if on_error == "raise":
        _check_files(task, wanted)
    chunks = _Chunks(task, wanted, batch_size, preprocess)
    loader: DataLoader[_Chunk] = DataLoader(
        chunks,
        batch_size=None,  # an item already is a batch
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        generator=torch.Generator(),  # by default the loader advances the global one
    )
    return _usable(loader, task, on_error, skipped)


def _check_files(task: Task, indices: Sequence[int]) -> None:
    """Raise if files do not exist, before others are read for hours."""
    if not isinstance(task.source, Files):
        return
    missing = [i for i in indices if not os.path.isfile(task.source.paths[i])]
    if missing:
        names = ", ".join(task.source.names[i] for i in sorted(missing)[:5]) + (", …" if len(missing) > 5 else "")
        first = task.source.paths[min(missing)]
        raise ValueError(
            f"batches: expected the files of {task.name!r} to exist, got {len(missing):,} of {len(indices):,} that do "
            f"not: {names} (the first is looked for at {first}); correct the paths, or {_SKIP}."
        )


_SKIP = 'go on without them: on_error="skip" (on the command line --skip-unreadable)'


def _usable(
    loader: DataLoader[_Chunk], task: Task, on_error: OnError, skipped: list[Failure] | None
) -> Iterator[Batch]:
    """Yield the batches, and raise or collect the failures, in the caller's process."""
    first: _Item | None = None
    ranges = RangeCheck(task)
    for chunk in _read(loader):
        if chunk.failures and on_error == "raise":
            failure = chunk.failures[0]
            raise ValueError(
                f"batches: expected usable images, got {failure.where}: {failure.reason.rstrip('. ')}. Or {_SKIP}."
            )
        if chunk.error is not None:
            raise chunk.error
        if skipped is not None:
            skipped.extend(chunk.failures)
        if chunk.batch is not None:
            item = _Item(int(chunk.batch.index[0]), chunk.batch.images[0], chunk.batch.labels[0])
            first = first or item
            if (error := _mismatch(task, first, item)) is not None:
                raise error
            ranges.add(chunk.peaks)
            yield chunk.batch
    ranges.end()


def _read(loader: DataLoader[_Chunk]) -> Iterator[_Chunk]:
    chunks = iter(loader)
    try:
        yield from chunks
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"batches: expected {loader.num_workers} reading processes to finish, but one died ({error}); "
            "often memory or shared memory (/dev/shm) has run out: pass a smaller num_workers, or 0."
        ) from error
    finally:
        # Without this, a traceback that somebody keeps would keep the loader and its processes alive.
        if hasattr(chunks, "_shutdown_workers"):
            chunks._shutdown_workers()


class _Chunks(Dataset[_Chunk]):
    """A task, batch by batch. Failures are returned: an exception would lose the batch and add a worker's traceback."""

    def __init__(self, task: Task, indices: list[int], batch_size: int, preprocess: Preprocess | None) -> None:
        self.task, self.indices, self.batch_size, self.preprocess = task, indices, batch_size, preprocess

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, number: int) -> _Chunk:
        start = number * self.batch_size
        items: list[_Item] = []
        failures: list[Failure] = []
        peaks: list[tuple[torch.dtype, float]] = []
        for i in self.indices[start : start + self.batch_size]:
            try:
                given, image, label = self._image(i)
            except TypeError as error:  # malformed; a data set's own TypeErrors are ValueErrors here, see Task.item
                return _Chunk(None, failures, TypeError(f"batches: {self.task.describe(i)}: {error}"))
            except Exception as error:
                if is_machines_fault(error):
                    return _Chunk(None, failures, _machines_fault(self.task.describe(i), error))
                reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                failures.append(Failure(i, self.task.describe(i), reason))
                continue
            item = _Item(i, image, label)
            if items and (mismatch := _mismatch(self.task, items[0], item)) is not None:
                return _Chunk(None, failures, mismatch)
            items.append(item)
            if self.preprocess is not None:
                peaks.append((given.dtype, float(given.max())))
        if not items:
            return _Chunk(None, failures)
        index, images, labels = zip(*items, strict=True)
        batch = Batch(torch.tensor(index), torch.stack(images), torch.stack(labels))
        return _Chunk(batch, failures, peaks=tuple(peaks))

    def _image(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """An image as RGB, as the probe's input, float32 ``[3, H, W]``, and its target."""
        if self.preprocess is None:
            item, label = self.task.item(index)
            given = image = _as_input(item)
        else:
            given, label = self.task[index]
            image = self.preprocess(given)
        label = self.task.target.prepare(label, given, self.preprocess)
        if not torch.isfinite(image).all():
            raise ValueError("batches: expected finite pixels, got NaN or infinity; correct or remove the image.")
        return given, image, label


def _machines_fault(where: str, error: Exception) -> Exception:
    """The error where memory or file handles run out."""
    if isinstance(error, OSError):
        return OSError(error.errno, f"batches: could not read {where} ({error.strerror}); raise the limit (ulimit -n)")
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


def _mismatch(task: Task, one: _Item, other: _Item) -> ValueError | None:
    """The error of two images that do not fit into one batch, or None."""
    for kind, ours, theirs, what, advice in (
        ("images", one.image, other.image, " where preprocess is None", "resize them, or pass a Preprocess"),
        ("targets", one.label, other.label, "", "give every image a target of the same size"),
    ):
        if ours.shape != theirs.shape:
            return ValueError(
                f"batches: expected {kind} of one size{what}, got {list(ours.shape)} for {task.describe(one.position)} "
                f"and {list(theirs.shape)} for {task.describe(other.position)}; {advice}."
            )
    return None
