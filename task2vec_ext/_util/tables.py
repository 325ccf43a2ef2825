"""Small tables: nearest neighbours, CSV files, file names."""

from __future__ import annotations

import csv
import hashlib
import re
from typing import TYPE_CHECKING, Any

from .atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor


def nearest(distances: Tensor) -> list[tuple[int, float]]:
    """Return, for every column (target) of ``[T, T]``, the nearest other row (source) and its distance.

    Args:
        distances: ``[T, T]``, T ≥ 2.

    Returns:
        T pairs of (index, distance).
    """
    others = distances.clone()
    others.fill_diagonal_(float("inf"))
    values, indices = others.min(0)
    return list(zip(indices.tolist(), values.tolist(), strict=True))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a header, atomically; numbers in full precision.

    Args:
        path: The file.
        columns: The header.
        rows: One sequence a line.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_matrix(path: Path, names: Sequence[str], matrix: Tensor) -> None:
    """Write ``[T, T]`` as CSV with the names along both sides, atomically.

    Args:
        path: The file.
        names: T names.
        matrix: Rows are sources, columns are targets.
    """
    write_table(path, ("", *names), ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True)))


def safe_name(name: str) -> str:
    """Return `name` as a file name that every file system takes.

    Args:
        name: What people call a task.

    Returns:
        Letters, digits, ``.``, ``-`` and ``_``; never empty, hidden or longer than 150 bytes.
    """
    name = re.sub(r"[^\w.-]+", "_", name).strip("._")
    return name.encode()[:150].decode(errors="ignore") or "task"


def file_name(name: str) -> str:
    """Return the file of a task's embedding in a library: another one for every name.

    Args:
        name: What people call a task.

    Returns:
        `safe_name`, a hash of the name, ``.safetensors``: names that differ in a sign or in case keep apart anywhere.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe_name(name)}-{digest[:12]}.safetensors"
