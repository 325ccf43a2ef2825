"""Progress of long work: bars on a terminal, a line every so often in a file where that was asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeAlias

from .terminal import printable

LINE_SECONDS = 30.0
"""Between two lines about one pass."""

Pass: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows one pass over images: takes a description and the number of images, yields ``advance(n)``."""


@contextmanager
def progress_bar(description: str, total: int, enabled: bool | Pass | None) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)`` of a bar over `total` images.

    `enabled` is None for a bar only where standard error is a terminal; True prints lines where it is not; a `Pass`
    replaces the bar.
    """
    if callable(enabled):
        with enabled(description, total) as advance:
            yield advance
    elif enabled is not False and sys.stderr.isatty():
        with _bars() as bars:
            work = bars.add_task(description, total=total)
            yield lambda n: bars.advance(work, n)
    else:
        yield _lines(description, total) if enabled else lambda n: None


def _lines(description: str, total: int) -> Callable[[int], None]:
    """Return ``advance(n)`` that prints how far the work is, at most every `LINE_SECONDS`."""
    seen, told = 0, time.monotonic()

    def advance(n: int) -> None:
        nonlocal seen, told
        seen += n
        if time.monotonic() - told >= LINE_SECONDS:
            told = time.monotonic()
            print(printable(f"{description}, {seen:,} of {total:,}"), file=sys.stderr, flush=True)

    return advance


class LibraryProgress:
    """Progress of the build of a library: in rich's bars, in lines (one a task) or not at all."""

    def __init__(self, tasks: int, images: int, before: int, bars: Any = None, lines: bool = False) -> None:
        """Show the bar of all tasks."""
        self._tasks, self._images, self._bars, self._lines = tasks, images, bars, lines
        self._ended, self._failed, self._seen = before, 0, 0
        self._started = time.monotonic()
        self._bar = None if bars is None else bars.add_task(self._text(), total=images)

    @contextmanager
    def of_pass(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show one pass over the images of the current task (a `Pass`)."""
        if self._bars is None:
            place = f"task {self._ended + 1} of {self._tasks}"
            yield _lines(f"{place}, {description}", total) if self._lines else lambda n: None
            return
        work = self._bars.add_task(description, total=total)
        try:
            yield lambda n: self._bars.advance(work, n)
        finally:
            self._bars.remove_task(work)

    def ended(self, name: str, images: int, error: str | None) -> None:
        """Count a task that is embedded or, where there is an error, has failed."""
        self._ended += 1
        self._failed += error is not None
        self._seen += images
        if self._bars is not None:
            self._bars.update(self._bar, advance=images, description=self._text())
        if self._lines:
            elapsed = time.monotonic() - self._started
            left = elapsed / max(self._seen, 1) * (self._images - self._seen)
            times = f"{timedelta(seconds=round(elapsed))}, about {timedelta(seconds=round(left))} left"
            outcome = printable(f"{name} " + ("done" if error is None else f"failed: {error}"))
            counts = f"{self._text()}, {self._seen:,} of {self._images:,} images"
            print(f"{counts}, {times}: {outcome}", file=sys.stderr, flush=True)

    def _text(self) -> str:
        return f"{self._ended} of {self._tasks} tasks" + (f", {self._failed} failed" if self._failed else "")


@contextmanager
def library_progress(tasks: int, images: int, enabled: bool | None, before: int = 0) -> Iterator[LibraryProgress]:
    """Yield the progress of the build of a library: `images` of the tasks that were not done `before`.

    `enabled` is None for bars only where standard error is a terminal; True prints lines where it is not.
    """
    if enabled is not False and sys.stderr.isatty():
        with _bars() as bars:
            yield LibraryProgress(tasks, images, before, bars)
    else:
        yield LibraryProgress(tasks, images, before, lines=bool(enabled))


def _bars() -> Any:
    from rich import console, progress

    name, times = progress.TextColumn("{task.description}", markup=False), progress.TimeElapsedColumn()
    columns = (name, progress.BarColumn(), progress.MofNCompleteColumn(), times, progress.TimeRemainingColumn())
    # The speed is estimated over an hour, because the tasks of a library take minutes each.
    return progress.Progress(*columns, console=console.Console(stderr=True), transient=True, speed_estimate_period=3600)
