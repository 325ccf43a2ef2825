"""CSV files."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from .atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a header atomically, numbers in full precision."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_matrix(path: Path, names: Sequence[str], matrix: Tensor) -> None:
    """Write ``[T, T]`` as a CSV file with the T names along both sides; rows are sources, columns are targets."""
    write_table(path, ("", *names), ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True)))
