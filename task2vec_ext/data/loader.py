"""Batches: a task's images in order, decoded, resized and checked by any number of processes, each image once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..words import OnError
from .folder import Files
from .identity import file_key
from .preprocess import Preprocess
from .range import RangeCheck
from .reader import Failure, Item, Outcome, Reader, Unit, Wanted, alike, mismatch
from .targets import Mask
from .task import Task, check_indices

if TYPE_CHECKING:
    from collections.abc import Hashable

    from .image_cache import ImageCache

_UNIT = 16
"""Images that a process reads at a time: few, so that all processes work on one batch, and the first is soon there."""


class Batch(NamedTuple):
    """Some images of a task.

    Attributes:
        index: ``[B]`` int64, the images' positions in the task.
        images: ``[B, 3, H, W]``: float32, ready for the probe; or uint8, before `Preprocess.normalised`.
        labels: ``[B]`` int64 classes, or ``[B, …]`` for other targets.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    images: Tensor
    labels: Tensor


def batches(
    task: Task,
    indices: Tensor | Sequence[int],
    preprocess: Preprocess | None,
    *,
    batch_size: int,
    num_workers: int = 0,
    on_error: OnError = "raise",
    skipped: list[Failure] | None = None,
) -> Iterator[Batch]:
    """Return an iterator over batches of a task's images, ready for the probe.

    It holds about two batches and ``32 · num_workers`` images at a time, ends its processes however it ends, and does
    not touch torch's global random state. For several passes over a task see `Loader`.

    Args:
        task: The task.
        indices: ``[n]`` positions of the images in the task, in the order wanted.
        preprocess: Applied to every image; None where the task's images already are the probe's input: float tensors
            ``[3, H, W]`` of one size.
        batch_size: Images in a batch. The last batch, and one with skipped images, may have fewer.
        num_workers: Processes that read; 0 reads in this one. The batches are the same, bit for bit.
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
    loader = Loader(task, preprocess, batch_size=batch_size, num_workers=num_workers)
    read = loader.batches(indices, on_error=on_error, skipped=skipped)

    def ready() -> Iterator[Batch]:
        try:
            for batch in read:
                if preprocess is not None and batch.images.dtype == torch.uint8:
                    batch = batch._replace(images=preprocess.normalised(batch.images))
                yield batch
        finally:
            read.close()  # type: ignore[attr-defined]  # a generator
            loader.close()

    return ready()


class Loader:
    """A task's images in batches, pass after pass: what the cache holds is not read again.

    8-bit images travel as uint8 crops (`Preprocess.cropped`), a quarter of the bytes; others as the probe's input.

    Args:
        task: The task.
        preprocess: As for `batches`.
        batch_size: As for `batches`.
        num_workers: As for `batches`. The processes live from one pass to the next while there is something to read.
        pin_memory: Whether to page-lock the batches for copies to a CUDA GPU.
        cache: Keeps 8-bit images. Of sources that are not `Files`, an image is the same in every pass.

    Raises:
        ValueError: If a number is impossible.
        NotImplementedError: If drafts are asked for of what is not decoded here, or has masks.
    """

    def __init__(
        self,
        task: Task,
        preprocess: Preprocess | None,
        *,
        batch_size: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        cache: ImageCache | None = None,
    ) -> None:
        """Start no process."""
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"batches: expected batch_size ≥ 1 and num_workers ≥ 0, got {batch_size} and {num_workers}; correct "
                "them."
            )
        drafts = preprocess is not None and preprocess.decoder == "draft"
        if drafts and (not isinstance(task.source, Files) or isinstance(task.target, Mask)):
            raise NotImplementedError(
                f"batches: expected image files without masks for decoder='draft', {task.name!r} has others; use "
                "'exact'."
            )
        self.task, self.preprocess, self.batch_size = task, preprocess, batch_size
        self._workers, self._pin, self._cache = num_workers, pin_memory and torch.cuda.is_available(), cache
        self._reader = Reader(task, preprocess)
        self._units = _Units()
        self._processes: DataLoader[Unit] | None = None
        self._token = object()  # of what is no file, nothing is known beyond these passes
        self._first_keys: dict[int, bytes | None] = {}  # of the files, when they were first read
        if cache is not None:
            cache.begin_task()

    def batches(
        self,
        indices: Tensor | Sequence[int],
        *,
        on_error: OnError = "raise",
        skipped: list[Failure] | None = None,
        targets: Tensor | None = None,
    ) -> Iterator[Batch]:
        """Return an iterator over batches; arguments, errors and promises as those of `batches`.

        Args:
            indices: ``[n]`` positions of the images in the task, in the order wanted.
            on_error: What to do with an image that cannot be used.
            skipped: Receives the `Failure` of every skipped image.
            targets: ``[n, …]`` the labels of the batches, where they are known; default: the task's.

        Raises:
            ValueError: If a file has changed since an earlier pass.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f'batches: expected on_error "raise" or "skip", got {on_error!r}; choose one of them.')
        wanted = check_indices(self.task, indices, who="batches").tolist()
        return self._pass(wanted, self._looked_at(wanted, on_error), targets, on_error, skipped)

    def read_again(self, index: int) -> Tensor:
        """Return an image as batches hold it, not from the cache.

        Args:
            index: Its position in the task.

        Raises:
            ValueError: If it cannot be used.
        """
        item = self._read_here(index, self._first_keys.get(index))
        assert item.image is not None  # it was read
        return item.image

    def close(self) -> None:
        """End the processes."""
        # Without this, a traceback that somebody keeps would keep the loader and its processes alive.
        if end := getattr(getattr(self._processes, "_iterator", None), "_shutdown_workers", None):
            end()
        self._processes = None

    def _looked_at(self, wanted: list[int], on_error: OnError) -> dict[int, bytes | None]:
        """The keys of files; raise if some do not exist or changed since an earlier pass, before hours of work."""
        source = self.task.source
        if not isinstance(source, Files):
            return {}
        keys = {i: file_key(source.paths[i], self._reader.made) for i in dict.fromkeys(wanted)}
        missing = sorted(i for i in keys if keys[i] is None) if on_error == "raise" else []
        if missing:
            names = ", ".join(source.names[i] for i in missing[:5]) + (", …" if len(missing) > 5 else "")
            raise ValueError(
                f"batches: expected the files of {self.task.name!r} to exist, got {len(missing):,} of "
                f"{len(wanted):,} that do not: {names} (the first is looked for at {source.paths[missing[0]]}); "
                f"correct the paths, or {_SKIP}."
            )
        changed = [i for i, key in keys.items() if self._first_keys.setdefault(i, key) != key]
        if changed:
            names = ", ".join(source.names[i] for i in changed[:5]) + (", …" if len(changed) > 5 else "")
            raise ValueError(
                f"batches: expected the files of {self.task.name!r} to stay as they were in the first pass, got "
                f"{len(changed):,} that changed since: {names}; start again when nobody writes them."
            )
        return keys

    def _pass(
        self,
        wanted: list[int],
        keys: dict[int, bytes | None],
        targets: Tensor | None,
        on_error: OnError,
        skipped: list[Failure] | None,
    ) -> Iterator[Batch]:
        ranges, first = RangeCheck(self.task), None
        items = self._items(wanted, keys, targets)
        try:
            for start in range(0, len(wanted), self.batch_size):
                good: list[Item] = []
                places: list[int] = []
                for place in range(start, min(start + self.batch_size, len(wanted))):
                    item = next(items)
                    if isinstance(item, Failure):
                        if on_error == "raise":
                            raise ValueError(
                                f"batches: expected usable images, got {item.where}: {item.reason.rstrip('. ')}. "
                                f"Or {_SKIP}."
                            )
                        if skipped is not None:
                            skipped.append(item)
                        continue
                    first = first or item
                    if (error := mismatch(self.task, first, item)) is not None:
                        raise error
                    good.append(item)
                    places.append(place)
                if good:
                    ranges.add([item.peak for item in good if item.peak is not None])
                    labels = [item.label for item in good] if targets is None else targets[places]
                    yield self._batch(good, labels, keys)
            ranges.end()
            if self._cache is not None:
                self._cache.flush()
        except BaseException:
            self.close()
            raise

    def _items(
        self, wanted: list[int], keys: dict[int, bytes | None], targets: Tensor | None
    ) -> Iterator[Item | Failure]:
        """Yield all images wanted, those that the cache does not hold as they are read."""
        found = [self._cached(i, keys, targets is not None) for i in wanted]
        lacking = [(i, keys.get(i)) for i, item in zip(wanted, found, strict=True) if item is None]
        units = self._read([lacking[start : start + self._unit] for start in range(0, len(lacking), self._unit)])
        ready: deque[Outcome] = deque()
        for known in found:
            if known is not None:
                yield known
                continue
            if not ready:
                ready.extend(next(units).items())
            item = ready.popleft()
            if isinstance(item, Exception):
                raise item
            yield item
        if not lacking:
            self.close()  # the cache has it all: nothing is left to do for processes of an earlier pass

    def _cached(self, i: int, keys: dict[int, bytes | None], has_target: bool) -> Item | None:
        """An image that the cache holds and whose label is known."""
        if self._cache is None or (peak := self._cache.peak(self._key(i, keys))) is None:
            return None
        label = None if has_target else self.task.listed_target(i)
        if label is None and not has_target:
            return None
        return Item(i, None, label, (torch.uint8, float(peak)))

    def _key(self, i: int, keys: dict[int, bytes | None]) -> Hashable:
        """What the cache knows an image by."""
        return keys[i] if isinstance(self.task.source, Files) else (self._token, i)

    @property
    def _unit(self) -> int:
        return min(self.batch_size, _UNIT)

    def _batch(self, items: list[Item], labels: Any, keys: dict[int, bytes | None]) -> Batch:
        """Stack images; those that were read go into the cache."""
        index = torch.tensor([item.position for item in items])
        if not isinstance(labels, Tensor):
            whole = all(isinstance(label, int) for label in labels)
            labels = torch.tensor(labels) if whole else torch.stack([torch.as_tensor(label) for label in labels])
        images = alike([self._image(item, keys) for item in items], self.preprocess)
        if not self._pin:
            return Batch(index, torch.stack(images), labels)
        pinned = torch.empty(len(images), *images[0].shape, dtype=images[0].dtype, pin_memory=True)
        return Batch(index, torch.stack(images, out=pinned), labels.pin_memory())

    def _image(self, item: Item, keys: dict[int, bytes | None]) -> Tensor:
        """The pixels of an image that was read or that the cache holds."""
        key = self._key(item.position, keys)
        if item.image is None:
            assert self._cache is not None  # which has said so
            assert self.preprocess is not None
            crop = self.preprocess.crop
            if (known := self._cache.get(key, (3, crop, crop))) is not None:
                return known
            item = self._read_here(item.position, keys.get(item.position))  # damaged since it was written
        assert item.image is not None
        if self._cache is not None and item.peak is not None and item.image.dtype == torch.uint8 and key is not None:
            self._cache.put(key, item.image, int(item.peak[1]))
        return item.image

    def _read_here(self, index: int, key: bytes | None) -> Item:
        (item,) = self._reader[[(index, key)]].items()
        if isinstance(item, Failure):
            raise ValueError(f"batches: expected a usable image, got {item.where}: {item.reason}")
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self, units: list[list[Wanted]]) -> Iterator[Unit]:
        """Yield what the processes read of units of images."""
        if not units:
            return
        if self._processes is None:
            workers = min(self._workers, len(units))
            ahead = max(2, math.ceil(2 * self.batch_size / (self._unit * max(workers, 1))))
            self._processes = DataLoader(
                self._reader,
                batch_size=None,  # an item already is a unit
                collate_fn=_as_it_is,
                sampler=self._units,
                num_workers=workers,
                prefetch_factor=ahead if workers else None,
                persistent_workers=workers > 0,
                generator=torch.Generator(),  # by default the loader advances the global one
            )
        self._units.now = units
        try:
            yield from self._processes
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RuntimeError(
                f"batches: expected {self._workers} reading processes to finish, but one died ({error}); "
                "often memory or shared memory (/dev/shm) has run out: pass a smaller num_workers, or 0."
            ) from error


_SKIP = 'go on without them: on_error="skip" (on the command line --skip-unreadable)'


def _as_it_is(unit: Any) -> Any:
    return unit


class _Units:
    """The units of the present pass, as a sampler that outlives it."""

    def __init__(self) -> None:
        self.now: list[list[Wanted]] = []

    def __iter__(self) -> Iterator[list[Wanted]]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)
