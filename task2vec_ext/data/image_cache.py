"""Decoded images, kept from pass to pass and from task to task: each image is decoded once."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections import OrderedDict, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from .._util.warnings import Task2VecWarning
from .crop_folder import CropFolder

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor

GIB = 1 << 30


class ImageCache:
    """The 8-bit crops that a network's input is made of, ``[3, crop, crop]``; the numbers do not depend on it.

    Crops are kept in memory, then in one temporary file, then not at all: the image is decoded again when it is
    needed. Where room is lacking, crops that the present task does not use are given up first, the oldest before the
    others. One cache serves many tasks, and probes that resize and crop alike share its crops.

    Args:
        max_memory: Most bytes in memory. A crop of 224 px takes 150,528: 1 GiB holds 7,133.
        max_disk: Most bytes in the temporary file (which takes at most half of what is free there), or in the folder.
        folder: Folder that keeps the crops of image files for later runs, under the file's path, size and times and
            the preprocessing. Several processes may use it at once. It is made if it does not exist; delete it to
            empty it. Default: none.

    Note:
        ``ImageCache(0, 0)`` keeps nothing. The temporary file has no name where the system can do that (Linux), so
        that nothing is left of it however the process ends; it lies in ``TMPDIR``, else in ``/var/tmp``, because
        ``/tmp`` is memory on many systems. Not for several threads.

    Raises:
        ValueError: If a size is negative.
    """

    def __init__(
        self,
        max_memory: int = GIB,
        max_disk: int = 64 * GIB,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Start empty, but for what the folder holds."""
        if max_memory < 0 or max_disk < 0:
            raise ValueError(
                f"ImageCache: expected sizes >= 0 bytes, got max_memory={max_memory} and max_disk={max_disk}."
            )
        self.max_memory, self.max_disk = max_memory, max_disk
        self.folder = None if folder is None else Path(folder).expanduser().absolute()
        self._memory, self._file = _Memory(max_memory), _File(max_disk)
        self._kept = None if self.folder is None else CropFolder(self.folder, max_disk)
        self._task = 0

    def __reduce__(self) -> tuple[type[ImageCache], tuple[int, int, Path | None]]:
        """Return what makes an empty cache of the same sizes and folder in another process."""
        return ImageCache, (self.max_memory, self.max_disk, self.folder)

    def begin_task(self) -> None:
        """Let crops of earlier tasks be given up for those of the next; see what others have put into the folder."""
        self._task += 1
        if self._kept is not None:
            self._kept.look()

    def peak(self, key: Hashable) -> int | None:
        """Return the highest value of the image that a crop was made of, or None if the cache does not hold it."""
        for tier in (self._memory, self._file):
            if (row := tier.use(key, self._task)) is not None:
                return row.peak
        return self._kept.peak(key) if self._kept is not None and isinstance(key, bytes) else None

    def get(self, key: Hashable, shape: tuple[int, ...]) -> Tensor | None:
        """Return a crop, not to be changed, or None if the cache does not hold it undamaged.

        Args:
            key: As given to `put`.
            shape: ``(3, crop, crop)``.
        """
        for tier in (self._memory, self._file):
            if (row := tier.use(key, self._task)) is not None and row.size == math.prod(shape):
                return tier.read(row, shape)
        if self._kept is None or not isinstance(key, bytes) or (peak := self._kept.peak(key)) is None:
            return None
        crop = torch.empty(shape, dtype=torch.uint8)
        if not self._kept.read(key, crop.numpy().reshape(-1)):
            return None
        self._memory.put(key, crop, peak, self._task, give_up=True)  # checked once
        return crop

    def put(self, key: Hashable, crop: Tensor, peak: int) -> None:
        """Keep a crop if there is room.

        Args:
            key: Stands for the image and what was done to it: 16 bytes (`identity.file_key`) last as long as the
                folder, anything else as long as this object.
            crop: ``[3, crop, crop]`` uint8, contiguous, on the CPU; copied.
            peak: The highest value of the image, before it was resized.
        """
        kept = self._kept is not None and isinstance(key, bytes) and self._kept.put(key, crop.numpy().reshape(-1), peak)
        for give_up in (False, True):  # crops of earlier tasks
            for tier in (self._memory,) if kept else (self._memory, self._file):
                if tier.put(key, crop, peak, self._task, give_up):
                    return

    def flush(self) -> None:
        """Write to the folder what still waits for it."""
        if self._kept is not None:
            self._kept.flush()

    def close(self) -> None:
        """Forget everything but the folder, which must be flushed."""
        self._memory.clear()
        self._file.clear()


@dataclass
class _Row:
    """A crop and where it is: the tensor, or its place in the file."""

    place: Tensor | int
    size: int
    peak: int
    task: int  # that used it last


class _Memory:
    """Crops up to a number of bytes, in the order of their last use."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self.rows: OrderedDict[Hashable, _Row] = OrderedDict()

    def use(self, key: Hashable, task: int) -> _Row | None:
        """Return a crop that a task now uses, if it is here."""
        row = self.rows.get(key)
        if row is not None and row.task != task:
            row.task = task
            self.rows.move_to_end(key)
        return row

    def put(self, key: Hashable, crop: Tensor, peak: int, task: int, give_up: bool) -> bool:
        """Return whether there was room for a crop, also by giving up those of other tasks."""
        size = crop.numel()
        if key in self.rows:
            self.drop(key)
        while self.bytes + size > self.most:
            oldest = next(iter(self.rows), None)
            if oldest is None or not give_up or self.rows[oldest].task == task:
                return False
            self.drop(oldest)
        place = self.write(crop)
        if place is None:
            return False
        self.rows[key] = _Row(place, size, peak, task)
        self.bytes += size
        return True

    def drop(self, key: Hashable) -> _Row:
        row = self.rows.pop(key)
        self.bytes -= row.size
        return row

    def write(self, crop: Tensor) -> Tensor | int | None:
        return crop.clone()

    def read(self, row: _Row, shape: tuple[int, ...]) -> Tensor | None:
        return row.place.view(shape)  # type: ignore[union-attr]  # a tensor in memory

    def clear(self) -> None:
        self.rows.clear()
        self.bytes = 0


class _File(_Memory):
    """The same in one temporary file. Read and written, not mapped: a full disk is then an error, and not a signal."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.file: BinaryIO | None = None
        self.end = 0
        self.free: defaultdict[int, list[int]] = defaultdict(list)  # size -> places of that size

    def drop(self, key: Hashable) -> _Row:
        row = super().drop(key)
        self.free[row.size].append(row.place)  # type: ignore[arg-type]  # a number in a file
        return row

    def write(self, crop: Tensor) -> int | None:
        size = crop.numel()
        try:
            if self.file is None:
                folder = _folder_for_large_files()
                self.most = min(self.most, shutil.disk_usage(folder).free // 2)
                self.file = tempfile.TemporaryFile(prefix="task2vec-", dir=folder, buffering=0)  # noqa: SIM115  # until clear()
            if self.free[size]:
                place = self.free[size].pop()
            elif self.end + size <= self.most:
                place, self.end = self.end, self.end + size
            else:
                return None
            self.file.seek(place)
            if self.file.write(crop.numpy().reshape(-1).data) != size:
                raise OSError("the disk is full")
        except OSError as error:
            self.most = 0  # what it holds stays readable
            warnings.warn(
                f"ImageCache: could not write the temporary file ({error.strerror or error}): further images are "
                "decoded in every pass; set TMPDIR to a folder with room, or use a smaller max_disk",
                Task2VecWarning,
                stacklevel=2,
            )
            return None
        return place

    def read(self, row: _Row, shape: tuple[int, ...]) -> Tensor | None:
        assert self.file is not None
        crop = torch.empty(shape, dtype=torch.uint8)
        with suppress(OSError):
            self.file.seek(row.place)  # type: ignore[arg-type]  # a number in a file
            if self.file.readinto(crop.numpy().reshape(-1)) == row.size:  # type: ignore[attr-defined]  # unbuffered
                return crop
        return None

    def clear(self) -> None:
        super().clear()
        if self.file is not None:
            self.file.close()
        self.file, self.end = None, 0
        self.free.clear()


def _folder_for_large_files() -> str:
    if "TMPDIR" not in os.environ:
        with suppress(OSError):
            if os.access("/var/tmp", os.W_OK | os.X_OK):
                return "/var/tmp"
    return tempfile.gettempdir()
