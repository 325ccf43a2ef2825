"""Tables: one row an image, with its file and its label, as CSV or Parquet."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..folder import Files
from ..task import Task
from .lazy import Tasks, expect

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def table(
    file: str | os.PathLike[str],
    *,
    path: str = "path",
    label: str = "label",
    task: str = "",
    split: str = "",
    root: str = "",
) -> Tasks:
    """Return the tasks of a table: one, or one for each value of a column.

    Args:
        file: ``.csv``, ``.tsv`` or, with the extra ``parquet``, ``.parquet``.
        path: Column of the images' files; relative ones start at `root`.
        label: Column of the classes: any text or numbers; labels 0…C−1 are the sorted values, whole numbers by size.
        task: Column of the tasks' names; default: the table is one task, named after the file.
        split: ``COLUMN:VALUE``: only rows with this value; default: all.
        root: Folder of the images; default: the table's own.

    Returns:
        The tasks, in the order of their first rows. Metadata: domain, the table's name.

    Raises:
        ValueError: If the file or a column is missing, a row is incomplete, or the table is empty.
        ImportError: If Parquet is to be read without pyarrow.
    """
    where = Path(os.path.abspath(file))
    expect("table", where.parent, [where.name], "whoever made the table")
    column, _, value = split.partition(":")
    wanted = [path, label, *filter(None, (task, column))]
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for number, row in enumerate(_rows(where, wanted), 1):
        if not row[path] or not row[label]:
            raise ValueError(f"table: expected {path} and {label} in row {number} of {where}, got {row}; fill it in.")
        if not split or row[column] == value:
            rows[row[task] if task else where.stem].append((row[path], row[label]))
    if not rows:
        of = f" with {column} = {value}" if split else ""
        raise ValueError(f"table: expected rows{of} in {where}, got none.")
    base = os.path.abspath(root) if root else str(where.parent)
    names = list(rows)

    def make(index: int) -> Task:
        files = [name for name, _ in rows[names[index]]]
        classes = tuple(sorted({title for _, title in rows[names[index]]}, key=_by_size))
        numbers = {title: i for i, title in enumerate(classes)}
        labels = tuple(numbers[title] for _, title in rows[names[index]])
        return Task(
            Files(tuple(os.path.join(base, name) for name in files), labels, tuple(files)),
            name=names[index],
            classes=classes,
            labels=torch.tensor(labels),
            metadata={"domain": where.stem},
        )

    expect("table", Path(base), [rows[names[0]][0][0]], "whoever made the table, or name their folder with root=DIR")
    return Tasks(names, make)


def _rows(file: Path, columns: list[str]) -> Iterator[Mapping[str, str]]:
    """Yield the rows, as text."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(file, columns)
        return
    if suffix not in _DELIMITERS:
        raise ValueError(f"table: expected a .csv, .tsv or .parquet file, got {file}; convert it.")
    # surrogateescape: file names need not be UTF-8.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=_DELIMITERS[suffix])
        _check_columns(file, columns, list(reader.fieldnames or ()))
        for row in reader:
            yield {column: row[column] or "" for column in columns}


def _parquet(file: Path, columns: list[str]) -> Iterator[Mapping[str, str]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "table: expected pyarrow for a Parquet table, got none; pip install 'task2vec_ext[parquet]', or give a CSV."
        ) from error
    with parquet.ParquetFile(file) as source:
        _check_columns(file, columns, source.schema_arrow.names)
        for batch in source.iter_batches(columns=columns):
            for row in batch.to_pylist():
                yield {column: "" if row[column] is None else str(row[column]) for column in columns}


def _check_columns(file: Path, wanted: list[str], found: list[str]) -> None:
    missing = [column for column in wanted if column not in found]
    if missing:
        raise ValueError(
            f"table: expected columns {', '.join(wanted)} in {file}, got {', '.join(found)}; "
            "name them: ?path=COLUMN&label=COLUMN."
        )


def _by_size(title: str) -> tuple[int, int, str]:
    """Sort whole numbers by size, before everything else by its letters."""
    return (0, int(title), title) if title.lstrip("-").isdecimal() else (1, 0, title)
