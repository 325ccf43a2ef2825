"""Tables as CSV or Parquet: each row has an image's file and its label."""

from __future__ import annotations

import csv
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..._util.warnings import Task2VecWarning
from ..._util.words import counted
from ..foreign import with_two_labels
from ..labels import number_names
from ..task import Task
from .lazy import Tasks, expect, files_task

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
    """Return the task of a table, or one task for each value of a column, in the order of their first rows.

    Metadata: domain, the table's name.

    Args:
        file: ``.csv``, ``.tsv`` or, with the extra ``parquet``, ``.parquet``.
        path: Column of the images' files; relative paths start at `root`.
        label: Column of the classes, text or numbers. Labels 0…C−1 are the sorted values; whole numbers sort by size.
        task: Column of the tasks' names; default: the table is one task, named after the file.
        split: ``COLUMN:VALUE``: only the rows with this value; default: all.
        root: Folder of the images; default: the table's own.

    Raises:
        ValueError: If the file or a column is missing, a row is incomplete, or no row is left.
        ImportError: If the table is Parquet and pyarrow is not installed.
    """
    where = Path(os.path.abspath(file))
    expect("table", where.parent, [where.name], "whoever made the table")
    column, _, value = split.partition(":")
    wanted = [path, label, *filter(None, (task, column))]
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for number, row in enumerate(_rows(where, wanted), 1):
        if not row[path].strip() or not row[label].strip():
            raise ValueError(f"table: expected {path} and {label} in row {number} of {where}, got {row}; fill it in.")
        if not split or row[column] == value:
            rows[row[task] if task else where.stem].append((row[path], row[label]))
    if not rows:
        of = f" with {column} = {value}" if split else ""
        raise ValueError(f"table: expected rows{of} in {where}, got none.")
    base, names = Path(os.path.abspath(root or where.parent)), list(rows)

    def make(index: int) -> Task:
        files, titles = zip(*rows[names[index]], strict=True)
        labels, classes = number_names(titles, who="table", where="row")
        if twice := with_two_labels(files, labels.tolist()):
            shown = ", ".join(twice[:5]) + ", …" * (len(twice) > 5)
            found = counted(len(twice), "file")
            warnings.warn(
                f"table: of {names[index]!r} in {where}, {found} with more than one label ({shown}); "
                'correct it, or make a list of (path, labels) for loss="multilabel"',
                Task2VecWarning,
                stacklevel=4,
            )
        return files_task(base, files, labels, name=names[index], classes=classes, metadata={"domain": where.stem})

    expect("table", base, [rows[names[0]][0][0]], "whoever made the table, or name their folder with root=DIR")
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
        try:
            reader = csv.DictReader(lines, delimiter=_DELIMITERS[suffix], skipinitialspace=True)
            _check_columns(file, columns, list(reader.fieldnames or ()))
            for row in reader:
                yield {column: row[column] or "" for column in columns}
        except csv.Error as error:
            raise ValueError(
                f"table: expected text with {_DELIMITERS[suffix]!r} between columns in {file}, got: {error}; save it "
                "again as CSV in UTF-8."
            ) from error


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
    if not set(wanted) <= set(found):
        raise ValueError(
            f"table: expected columns {', '.join(wanted)} in {file}, got {', '.join(found)}; "
            "name them: ?path=COLUMN&label=COLUMN."
        )
