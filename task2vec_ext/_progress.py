"""One progress bar for long work: on the terminal, never in a file or a notebook's log unless asked for."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress_bar(description: str, total: int, enabled: bool | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar by so many pictures.

    Args:
        description: what is going on, e.g. ``"birds: features"``.
        total: pictures in all.
        enabled: None shows a bar where standard error is a terminal.

    Yields:
        ``advance(n)``.
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        work = bar.add_task(description, total=total)
        yield lambda n: bar.advance(work, n)
