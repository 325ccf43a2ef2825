"""A folder of crops that outlives the run, and that several processes may use at once.

A file ``NAME.crops`` is a safetensors file of n crops of one size: ``keys`` ``[n, 16]``, ``peaks`` ``[n]``, ``sums``
``[n]`` (CRC-32) and ``crops`` ``[n, bytes]``. It appears whole, by a rename, and is never changed: nobody waits for
anybody, and the folder may lie on a network. Every crop is compared with its sum when it is first read.
"""

from __future__ import annotations

import functools
import json
import secrets
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .._util.atomic import atomic_path, check_writable
from .._util.interrupt import signals_held
from .._util.warnings import Task2VecWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

_PACK = 32 << 20
"""Bytes of crops in a file: what a killed process loses, and what waits in memory."""


class _Row(NamedTuple):
    """Where a crop is: a file, or the crop itself where it waits to be written."""

    place: Path | bytes
    offset: int
    size: int
    peak: int
    sum: int


class CropFolder:
    """The crops in a folder.

    Args:
        folder: Made if it does not exist. If it cannot be written to, it is read alone, with a warning.
        most: Most bytes of crops in it.
    """

    def __init__(self, folder: Path, most: int) -> None:
        """Look at the folder; read no crop."""
        self._folder, self._most, self._bytes = folder, most, 0
        self._rows: dict[bytes, _Row] = {}
        self._waiting: dict[bytes, _Row] = {}
        self._files: set[Path] = set()
        self._checked: set[bytes] = set()
        self._writable = most > 0
        if self._writable:
            try:
                check_writable("ImageCache", folder)
            except OSError as error:
                self._give_up(error)
        self.look()

    def look(self) -> None:
        """Learn which crops other processes have put here."""
        for file in sorted(set(self._folder.glob("*.crops")) - self._files, key=_time):
            self._files.add(file)
            with suppress(SafetensorError, OSError, ValueError, KeyError):  # no file of ours, or cut short by a copy
                self._learn(file)

    def peak(self, key: bytes) -> int | None:
        """Return the highest value of the image of a crop, or None if the crop is not here."""
        row = self._waiting.get(key) or self._rows.get(key)
        return None if row is None else row.peak

    def read(self, key: bytes, out: Bytes) -> bool:
        """Copy a crop, and return whether it is here undamaged; else it is forgotten."""
        row = self._waiting.get(key) or self._rows.get(key)
        if row is None or row.size != out.nbytes:
            return False
        if isinstance(row.place, bytes):
            out[:] = np.frombuffer(row.place, np.uint8)
            return True
        try:
            file = _opened(row.place)
            file.seek(row.offset)
            whole = file.readinto(out) == row.size  # type: ignore[attr-defined]  # unbuffered
        except OSError:
            whole = False
        if whole and (key in self._checked or zlib.crc32(out.data) == row.sum):
            self._checked.add(key)
            return True
        del self._rows[key]
        return False

    def put(self, key: bytes, crop: Bytes, peak: int) -> bool:
        """Return whether a crop is here, or will be with the next `flush`."""
        if key in self._rows or key in self._waiting:
            return True
        if not self._writable or self._bytes + crop.nbytes > self._most:
            return False
        if self._waiting and next(iter(self._waiting.values())).size != crop.nbytes:
            self.flush()
        content = crop.tobytes()
        self._waiting[key] = _Row(content, 0, crop.nbytes, peak, zlib.crc32(content))
        self._bytes += crop.nbytes
        if len(self._waiting) * crop.nbytes >= _PACK:
            self.flush()
        return self._writable

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        rows = list(self._waiting.values())
        crops = np.empty((len(rows), rows[0].size), np.uint8)
        for out, row in zip(crops, rows, strict=True):
            assert isinstance(row.place, bytes)  # it waits
            out[:] = np.frombuffer(row.place, np.uint8)
        tensors: dict[str, NDArray[Any]] = {
            "keys": np.frombuffer(b"".join(self._waiting), np.uint8).reshape(-1, 16),
            "peaks": np.array([row.peak for row in rows], np.uint8),
            "sums": np.array([row.sum for row in rows], np.uint32),
            "crops": crops,
        }
        file = self._folder / f"{secrets.token_hex(8)}.crops"
        try:
            with signals_held(), atomic_path(file, durable=False) as temporary:  # the sums tell damage
                save_file(tensors, temporary)
        except (OSError, SafetensorError) as error:
            self._give_up(error)
            self._waiting.clear()
            return
        self._files.add(file)
        self._checked.update(self._waiting)
        self._bytes -= sum(row.size for row in rows)  # `_learn` counts them
        self._waiting.clear()
        self._learn(file)

    def _learn(self, file: Path) -> None:
        """Remember what a file holds."""
        with safe_open(file, "numpy") as opened:
            keys, peaks, sums = (opened.get_tensor(name) for name in ("keys", "peaks", "sums"))
            count, size = opened.get_slice("crops").get_shape()
        with file.open("rb") as plain:
            length = int.from_bytes(plain.read(8), "little")
            start = 8 + length + json.loads(plain.read(length))["crops"]["data_offsets"][0]
        if keys.shape != (count, 16) or keys.dtype != np.uint8 or not len(keys) == len(peaks) == len(sums):
            raise ValueError("no crops")
        for number, (key, peak, total) in enumerate(zip(keys, peaks.tolist(), sums.tolist(), strict=True)):
            self._rows[key.tobytes()] = _Row(file, start + number * size, size, peak, total)
        self._bytes += count * size

    def _give_up(self, error: Exception) -> None:
        """Write no more, and say so once."""
        self._writable = False
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        warnings.warn(
            f"ImageCache: could not write into {self._folder} ({reason}): no more images are kept there for later "
            "runs, and the work goes on without; free space, or choose another folder",
            Task2VecWarning,
            stacklevel=2,
        )


def _time(file: Path) -> int:
    """When a file appeared: what replaces a damaged crop comes later."""
    with suppress(OSError):
        return file.stat().st_mtime_ns
    return 0


@functools.lru_cache(maxsize=32)
def _opened(file: Path) -> BinaryIO:
    """A file of crops, opened; those not used for long are closed."""
    return file.open("rb", buffering=0)
