"""CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .atomic import atomic_path


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a header atomically, numbers in full precision."""
    with atomic_path(path) as new, new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_matrix(path: Path, names: Sequence[str], matrix: Tensor) -> None:
    """Write ``[T, T]`` as a CSV file with the T names along both sides; rows are sources, columns are targets."""
    write_table(path, ("", *names), ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True)))
