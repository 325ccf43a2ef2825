"""How far long work is: bars on the terminal, never in a file or a notebook's log unless asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from .terminal import printable

if TYPE_CHECKING:
    from ..library.index import Entry

Pass: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows one pass over images: takes what is going on and how many they are, gives ``advance(n)``."""


@contextmanager
def progress_bar(description: str, total: int, enabled: bool | Pass | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar by so many images.

    Args:
        description: What is going on, e.g. ``"birds: features"``.
        total: Images in all.
        enabled: None shows a bar where standard error is a terminal; a function shows the pass in its own way.

    Yields:
        ``advance(n)``.
    """
    if callable(enabled):
        with enabled(description, total) as advance:
            yield advance
        return
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield lambda n: None
        return
    with _bars() as bars:
        work = bars.add_task(description, total=total)
        yield lambda n: bars.advance(work, n)


@dataclass
class LibraryProgress:
    """How far the build of a library is.

    Args:
        tasks: To be embedded in this build.
        images: Of all of them.
        bars: Where to show it; None: nowhere.
        lines: Whether to print a line a task.
    """

    tasks: int
    images: int
    bars: Any = None
    lines: bool = False
    _ended: int = 0
    _failed: int = 0
    _seen: int = 0
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Show the bar of all tasks."""
        self._bar = None if self.bars is None else self.bars.add_task(self._text(), total=self.images)

    @contextmanager
    def of_pass(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show one pass over the images of the task in work (a `Pass`)."""
        if self.bars is None:
            yield lambda n: None
            return
        work = self.bars.add_task(description, total=total)
        try:
            yield lambda n: self.bars.advance(work, n)
        finally:
            self.bars.remove_task(work)

    def ended(self, images: int, entry: Entry) -> None:
        """Count a task that is done or has failed.

        Args:
            images: Of the task.
            entry: What came of it.
        """
        self._ended += 1
        self._failed += entry.state == "failed"
        self._seen += images
        if self._bar is not None:
            self.bars.update(self._bar, advance=images, description=self._text())
        if self.lines:
            elapsed = time.monotonic() - self._started
            left = elapsed / max(self._seen, 1) * (self.images - self._seen)
            said = entry.state if entry.error is None else f"failed: {entry.error}"
            print(
                f"{self._text()}, {self._seen:,} of {self.images:,} images, "
                f"{_time(elapsed)}, about {_time(left)} left: {printable(f'{entry.name} {said}')}",
                file=sys.stderr,
                flush=True,
            )

    def _text(self) -> str:
        return f"{self._ended} of {self.tasks} tasks" + (f", {self._failed} failed" if self._failed else "")


@contextmanager
def library_progress(tasks: int, images: int, enabled: bool | None) -> Iterator[LibraryProgress]:
    """Yield what tells how far the build of a library is.

    Args:
        tasks: To be embedded.
        images: Of all of them.
        enabled: None shows bars where standard error is a terminal; True prints a line a task where it is none.

    Yields:
        The `LibraryProgress`.
    """
    if enabled is not False and sys.stderr.isatty():
        with _bars() as bars:
            yield LibraryProgress(tasks, images, bars)
    else:
        yield LibraryProgress(tasks, images, lines=bool(enabled))


def _bars() -> Any:
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
    # Speed over an hour: the tasks of a library take minutes each.
    return Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=3600)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
