"""CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .atomic import atomic_path


def read_table(who: str, path: Path) -> list[list[str]]:
    """Return the rows of a CSV file that are not blank, cells without the blanks around them, or raise ValueError."""
    if not path.is_file():
        raise ValueError(f"{who}: expected a CSV file at {path}, found none.")
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        try:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
        except csv.Error as error:
            raise ValueError(f"{who}: {path} is not CSV: {error}.") from None
    return [row for row in rows if any(row)]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a header atomically, numbers in full precision."""
    with atomic_path(path) as new, new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_matrix(path: Path, names: Sequence[str], matrix: Tensor) -> None:
    """Write ``[T, T]`` as a CSV file with the T names along both sides; rows are sources, columns are targets."""
    write_table(path, ("", *names), ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True)))
