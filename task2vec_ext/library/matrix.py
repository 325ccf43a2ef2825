"""The Fisher of all tasks of a library in one file, and the nearest rows of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..kernels.pairwise import sym_distances
from ..words import SymDistanceName

_BLOCK_BYTES = 32 << 20
"""Of one float64 block of rows: large enough that its set-up costs nothing, small beside anything else in memory."""


class Matrix:
    """``[slots, K]`` float32 on the disk, mapped a block at a time: memory does not grow with the library.

    Rounding moves d_sym by 1e-9 (106 real tasks, benchmarks/nearest.py), and half the bytes are half the time where the
    disk sets it. Slots never written are holes in the file.
    """

    def __init__(self, path: Path, filters: int) -> None:
        """Keep path and row length K; opens nothing."""
        self.path, self.filters, self._row_bytes = path, filters, 4 * filters

    def write(self, slot: int, row: Tensor) -> None:
        """Write one row ``[K]``, on the disk when this returns."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.pwrite(file, row.to(torch.float32).numpy().tobytes(), slot * self._row_bytes)
            os.fsync(file)
        finally:
            os.close(file)

    def holds(self, slot: int) -> bool:
        """Return whether the file goes as far as this slot."""
        return self.path.is_file() and self.path.stat().st_size >= (slot + 1) * self._row_bytes

    def read(self, slots: Tensor) -> Tensor:
        """Return the rows ``[n, K]`` float32 of slots ``[n]``, ascending, none beyond the last that was written."""
        first, last = int(slots[0]), int(slots[-1])
        shape = last + 1 - first, self.filters
        mapped = np.memmap(self.path, np.float32, "r", offset=first * self._row_bytes, shape=shape)
        return torch.from_numpy(mapped[(slots - first).numpy()])  # a copy: the mapping ends here

    def blocks(self, slots: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield slots ``[b]`` and their rows ``[b, K]`` float64, a block of the ascending `slots` at a time."""
        for some in slots.split(max(1, _BLOCK_BYTES // (8 * self.filters))):
            yield some, self.read(some).double()


class Found(NamedTuple):
    """The nearest rows of each query."""

    distances: Tensor  # [Q, k] float64, ascending
    slots: Tensor  # [Q, k] int64


def nearest(matrix: Matrix, queries: Tensor, slots: Tensor, k: int, distance: SymDistanceName = "sym") -> Found:
    """Return the at most k of the rows `slots`, ascending, that are nearest to each of the queries ``[Q, K]`` float64.

    All are compared; neither rows nor queries may be all zero. Equal distances are in the order of their slots. Memory
    stays under 200 MB, however many rows there are (benchmarks/nearest.py).
    """
    queries = _scaled(queries, distance)
    distances, chosen = queries.new_empty(len(queries), 0), slots.new_empty(len(queries), 0)
    for some, rows in matrix.blocks(slots):
        distances = torch.cat([distances, sym_distances(queries, _scaled(rows, distance))], 1)
        chosen = torch.cat([chosen, some.expand(len(queries), -1)], 1)
        order = distances.sort(dim=1, stable=True).indices[:, :k]
        distances, chosen = distances.gather(1, order), chosen.gather(1, order)
    return Found(distances, chosen)


def _scaled(rows: Tensor, distance: SymDistanceName) -> Tensor:
    return rows if distance == "sym" else rows / rows.mean(1, keepdim=True)
