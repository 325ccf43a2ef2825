"""Output of the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Return the console for tables; in a file or a pipe it is wide enough that no name is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header; columns whose first cell starts with a digit are right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        numeric = bool(rows) and rows[0][number][:1].isdigit() and number > 0
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # Text, because a name is no markup
    console.print(table)


def printable(name: str) -> str:
    """Return a name that any UTF-8 stream takes: bytes of a file name that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
