"""A library as a table: one row a task, for pandas and spreadsheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._util.atomic import atomic_path
from .._util.tables import write_table
from .._util.terminal import printable
from ..embedding import Embedding
from ..embedding.file import to_json
from .entry import Entry

SUFFIXES = (".csv", ".parquet")
_TYPES: dict[str, type] = {
    "name": str,
    "state": str,
    "images": int,
    "num_samples": int,
    "num_skipped": int,
    "num_outputs": int,
    "metric": str,
    "score": float,
    "held_out_score": float,
    "norm": float,
    "norm_error": float,
    "digest": str,
    "classes": list,
    "metadata": dict,
    "error": str,
}


def row_of(entry: Entry, embedding: Embedding | None) -> dict[str, Any]:
    """Return the row of a task: what `Library.table` documents."""
    known = {name: value for name, value in entry._asdict().items() if name in _TYPES}
    if embedding is not None:
        head = embedding.head
        known |= {"metric": head.metric, "score": head.score, "held_out_score": head.held_out_score}
        known["norm_error"] = None if embedding.group_means is None else embedding.groups.norm_error()
        known["classes"] = None if embedding.classes is None else list(embedding.classes)
        known["metadata"] = embedding.metadata
    return {name: known.get(name) for name in _TYPES}


def check_table_file(path: Path) -> None:
    """Raise where a table cannot be written to such a file, before any work is done."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"export: expected a file that ends in {' or '.join(SUFFIXES)}, got {path}; rename it.")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401  # is it here?
        except ImportError:
            raise ImportError(
                "export: expected pyarrow for a Parquet table, found none; pip install 'task2vec_ext[parquet]', or "
                "write a .csv."
            ) from None


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of `row_of` as CSV or Parquet, atomically; lists and dictionaries become JSON."""
    cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
    if path.suffix.lower() == ".csv":
        write_table(path, tuple(_TYPES), [tuple(row.values()) for row in cells])
        return
    import pyarrow as pa
    from pyarrow import parquet

    types = {int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, types.get(kind, pa.string())) for name, kind in _TYPES.items()])
    with atomic_path(path) as new:
        parquet.write_table(pa.Table.from_pylist(cells, schema), new)


def _cell(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return to_json(value)
    return printable(value) if isinstance(value, str) else value
