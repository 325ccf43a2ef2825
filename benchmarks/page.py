"""All records as Markdown tables, for the site's page of benchmarks (docs/hooks.py).

The tables have every figure, with its quartiles if there are any, except figures of single layers: the page links to
the JSON.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from report import Record, command, source

_MOST_PARTS = 12
"""A nested dictionary of more parts holds layers or shapes and has no columns in the table."""


def questions(readme: str) -> dict[str, str]:
    """Return the question that each benchmark answers, from the table of benchmarks/README.md."""
    return dict(re.findall(r"^\| `python benchmarks/(\w+)\.py[^|]*\| ([^|]+?) \|$", readme, re.M))


def page(results: Path, readme: str) -> str:
    """Return every record as Markdown: its question, where it was measured, its figures."""
    asked, lines = questions(readme), []
    for file in sorted(results.glob("*/*.json")):
        record: Record = json.loads(file.read_text(encoding="utf-8"))
        name = file.stem
        question = next((text for script, text in asked.items() if name.startswith(script)), None)
        if question is None:
            raise SystemExit(f"page: expected a row for {name} in benchmarks/README.md, found none; add it.")
        lines += [
            f"### {name}",
            "",
            f"{question} `{command(record)}`",
            "",
            f"{source(record)} · [JSON](results/{file.parent.name}/{file.name})",
            "",
            *_tables(record["result"]),
        ]
    return "\n".join(lines)


def _tables(result: dict[str, Any]) -> list[str]:
    """Return a table of the single values, and one for each list or dictionary of similar records."""
    single: dict[str, str] = {}
    lines: list[str] = []
    for name, value in result.items():
        rows = _rows(name, value)
        if rows is None:
            single |= _cells({name: value})
        elif rows:
            lines += [*_table(rows), ""]
    if single:
        lines = [*_table([{"what": key, "value": text} for key, text in single.items()]), "", *lines]
    return lines


def _rows(name: str, value: Any) -> list[dict[str, str]] | None:
    """Return the rows of a table, or None if the value is no collection of records."""
    if isinstance(value, dict) and value and not _is_figure(value):
        if not all(isinstance(part, dict) and not _is_figure(part) for part in value.values()):
            return None
        return [{name: key, **_cells(part)} for key, part in value.items()]
    if _is_list(value):
        return [row for part in value for row in _row_of_each(part)]
    return None


def _row_of_each(record: dict[str, Any]) -> list[dict[str, str]]:
    """Return a record's row, or a row for each point if it holds a curve (a list of records)."""
    points = next((value for value in record.values() if _is_list(value)), [{}])
    return [_cells(record) | _cells(point) for point in points]


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _cells(record: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a record's values as text; nested values are named ``part · part``."""
    cells: dict[str, str] = {}
    for key, value in record.items():
        name = prefix + key.replace("_", " ")
        if isinstance(value, dict) and not _is_figure(value):
            if len(value) <= _MOST_PARTS:
                cells |= _cells(value, f"{name} · ")
        elif not isinstance(value, list):
            cells[name] = _text(value)
        elif not any(isinstance(part, dict) for part in value):
            cells[name] = ", ".join(map(_text, value))
    return cells


def _table(rows: list[dict[str, str]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row.get(column, '') for column in columns)} |" for row in rows),
    ]


def _is_figure(value: dict[str, Any]) -> bool:
    return "median" in value


def _text(value: Any) -> str:
    if isinstance(value, dict):
        spread = value.get("quartiles") or value.get("range")
        between = "" if spread is None else f" ({_text(spread[0])}–{_text(spread[-1])})"
        return _text(value["median"]) + between
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")
