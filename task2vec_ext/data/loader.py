"""Batches: a task's images decoded, preprocessed and checked, in order, in as many processes as wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .preprocess import Preprocess
from .task import Task

OnError = Literal["raise", "skip"]


class Batch(NamedTuple):
    """Some images of a task, ready for the probe.

    Attributes:
        index: ``[B]`` int64, which images of the task.
        images: ``[B, 3, H, W]`` float32.
        labels: ``[B]`` int64 classes, or what the task's target is: ``[B, …]``.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs on a batch
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Failure:
    """An image that could not be used.

    Args:
        index: Which image of the task.
        where: What messages call it: ``image 12 (cats/a.jpg)``.
        reason: What went wrong.
    """

    index: int
    where: str
    reason: str


class _Chunk(NamedTuple):
    """What one batch comes back as from the process that reads it."""

    batch: Batch | None  # None: no image of it can be used
    failures: list[Failure]
    error: Exception | None = None  # raised even where failures are skipped: not an image's fault


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
    """Return an iterator over the images in the order of ``indices``.

    Args:
        task: The task.
        indices: ``[n]`` which of its images.
        preprocess: Applied to every image; None where the task gives the probe's inputs itself: float
            tensors ``[3, H, W]``, all of one size.
        batch_size: Images in a batch; the last one, and one with skipped images, may have fewer.
        num_workers: Processes that read; 0 reads in this one. The batches are the same, bit for bit.
        pin_memory: Whether to page-lock the batches for copies to a CUDA GPU; ignored where there is none.
        on_error: Whether an image that cannot be used raises or is left out.
        skipped: Receives the `Failure` of every image left out.

    Returns:
        An iterator. It holds at most ``batch_size · (2 · num_workers + 1)`` images at a time, leaves no
        process behind however it ends, and leaves torch's global random state alone.

    Raises:
        ValueError: If an argument is impossible (at once), or if an image cannot be read, is not finite or
            has a wrong shape (when its batch is due); names the image and the reason.
        TypeError: If an item of the task is not a pair of image and label of the task's kind.

    Note:
        Images of different sizes without a ``preprocess``, a malformed task and lack of memory raise with
        ``on_error="skip"`` too: skipping would silently drop an arbitrary part of the task.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            f"batches: expected batch_size ≥ 1 and num_workers ≥ 0, got {batch_size} and {num_workers}; correct them."
        )
    if on_error not in ("raise", "skip"):
        raise ValueError(f'batches: expected on_error "raise" or "skip", got {on_error!r}; choose one of them.')
    chunks = _Chunks(task, _checked_indices(indices, len(task)), batch_size, preprocess)
    loader: DataLoader[_Chunk] = DataLoader(
        chunks,
        batch_size=None,  # an item already is a batch
        collate_fn=_unchanged,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        generator=torch.Generator(),  # or the loader would advance the global one
    )
    return _settled(loader, task, on_error, skipped)


def _checked_indices(indices: Tensor | Sequence[int], num_images: int) -> list[int]:
    wanted = torch.as_tensor(indices)
    if wanted.numel() == 0:
        return []
    if wanted.ndim != 1 or wanted.dtype == torch.bool or wanted.is_floating_point():
        raise TypeError(
            f"batches: expected integer indices [n], got {wanted.dtype} of shape {list(wanted.shape)}; "
            "turn a mask into indices with mask.nonzero()[:, 0]."
        )
    low, high = (int(v) for v in wanted.aminmax())
    if low < 0 or high >= num_images:
        raise ValueError(
            f"batches: expected indices in 0…{num_images - 1}, got {low if low < 0 else high}; "
            f"choose among the task's {num_images} images."
        )
    return wanted.tolist()


def _settled(
    loader: DataLoader[_Chunk], task: Task, on_error: OnError, skipped: list[Failure] | None
) -> Iterator[Batch]:
    """Yield the good batches and deals with the failures, in the caller's process."""
    first: Batch | None = None
    for chunk in _read(loader):
        if chunk.failures and on_error == "raise":
            failure = chunk.failures[0]
            raise ValueError(
                f"batches: expected usable images, got {failure.where}: {failure.reason} "
                'Or pass on_error="skip" to go on without it.'
            )
        if chunk.error is not None:
            raise chunk.error
        if skipped is not None:
            skipped.extend(chunk.failures)
        if chunk.batch is None:
            continue
        first = first or chunk.batch
        if chunk.batch.images.shape[1:] != first.images.shape[1:]:
            raise _sizes_differ(
                task, int(first.index[0]), first.images[0], int(chunk.batch.index[0]), chunk.batch.images[0]
            )
        if chunk.batch.labels.shape[1:] != first.labels.shape[1:]:
            raise _targets_differ(
                task, int(first.index[0]), first.labels[0], int(chunk.batch.index[0]), chunk.batch.labels[0]
            )
        yield chunk.batch


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
        # Said outright: a traceback that somebody keeps would keep the loader and its processes alive.
        if hasattr(chunks, "_shutdown_workers"):
            chunks._shutdown_workers()


class _Chunks(Dataset[_Chunk]):
    """A task batch by batch. What fails is returned, never raised.

    An exception would reach the caller wrapped in the worker's traceback, and take its whole batch with it.
    """

    def __init__(self, task: Task, indices: list[int], batch_size: int, preprocess: Preprocess | None) -> None:
        self.task = task
        self.indices = indices
        self.batch_size = batch_size
        self.preprocess = preprocess

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, number: int) -> _Chunk:
        start = number * self.batch_size
        index: list[int] = []
        images: list[Tensor] = []
        labels: list[Tensor] = []
        failures: list[Failure] = []
        for i in self.indices[start : start + self.batch_size]:
            try:
                image, label = self._image(i)
            except TypeError as error:  # the data set's own are ValueErrors by now: see Task.item
                return _Chunk(None, failures, TypeError(f"batches: {self.task.describe(i)}: {error}"))
            except MemoryError:
                message = f"batches: expected memory for {self.task.describe(i)}, got none; close other programs."
                return _Chunk(None, failures, MemoryError(message))
            except Exception as error:
                reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                failures.append(Failure(i, self.task.describe(i), reason))
                continue
            if images and image.shape != images[0].shape:
                return _Chunk(None, failures, _sizes_differ(self.task, index[0], images[0], i, image))
            if labels and label.shape != labels[0].shape:
                return _Chunk(None, failures, _targets_differ(self.task, index[0], labels[0], i, label))
            index.append(i)
            images.append(image)
            labels.append(label)
        if not images:
            return _Chunk(None, failures)
        return _Chunk(Batch(torch.tensor(index), torch.stack(images), torch.stack(labels)), failures)

    def _image(self, index: int) -> tuple[Tensor, Tensor]:
        """The probe's input for one image, float32 ``[3, H, W]``, and its label."""
        if self.preprocess is None:
            item, label = self.task.item(index)
            given = image = _as_input(item)
        else:
            given, label = self.task[index]
            image = self.preprocess(given)
        label = self.task.target.prepare(label, given, self.preprocess)
        if not torch.isfinite(image).all():
            raise ValueError("batches: expected finite pixels, got NaN or infinity; mend or remove the image.")
        return image, label


def _as_input(image: Any) -> Tensor:
    """An image that comes preprocessed, as float32 ``[3, H, W]``."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(
            f"expected a float tensor [3, H, W] where preprocess is None, got {got}; "
            "pass a Preprocess, or make the data set return what the probe takes."
        )
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(
            f"batches: expected an image [3, H, W] where preprocess is None, got {list(image.shape)}; "
            "pass a Preprocess, or make the data set return what the probe takes."
        )
    return image.detach().to("cpu", torch.float32)


def _sizes_differ(task: Task, first: int, image: Tensor, second: int, other: Tensor) -> ValueError:
    return ValueError(
        f"batches: expected images of one size where preprocess is None, got {list(image.shape)} for "
        f"{task.describe(first)} and {list(other.shape)} for {task.describe(second)}; "
        "resize them in the data set, or pass a Preprocess."
    )


def _targets_differ(task: Task, first: int, target: Tensor, second: int, other: Tensor) -> ValueError:
    return ValueError(
        f"batches: expected targets of one size, got {list(target.shape)} for {task.describe(first)} and "
        f"{list(other.shape)} for {task.describe(second)}; give every image the same."
    )


def _unchanged(chunk: Any) -> Any:
    return chunk  # a named function, because a lambda does not reach workers that are spawned
