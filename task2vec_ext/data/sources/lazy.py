"""Many tasks of one data set, made one at a time."""

from __future__ import annotations

import json
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from ..task import Task


class Tasks(Sequence[Task]):
    """Tasks that are made when asked for: a thousand of them cost their names and one index of the images.

    Args:
        names: One for each task, all different.
        make: Makes the task at an index; reads no image.

    Raises:
        ValueError: If two tasks have one name; says which.

    Note:
        Every access makes a new task. Go through them one by one; ``list(tasks)`` holds all of them at once.
    """

    def __init__(self, names: Sequence[str], make: Callable[[int], Task]) -> None:
        """Check the names; makes nothing."""
        twins = [name for name, count in Counter(names).items() if count > 1]
        if twins:
            shown = ", ".join(map(repr, twins[:5])) + (", …" if len(twins) > 5 else "")
            raise ValueError(
                f"Tasks: expected every task to have a name of its own, got {shown} more than once; "
                "name each source once, and rename folders of one name."
            )
        self.names = tuple(names)
        self._make = make

    @classmethod
    def joined(cls, parts: Sequence[Tasks]) -> Tasks:
        """Return the tasks of all parts, one part after the other.

        Args:
            parts: Tasks with names that differ between parts, too.

        Returns:
            The tasks, as lazy as before.
        """
        ends = list(accumulate(map(len, parts)))

        def make(index: int) -> Task:
            part = next(number for number, end in enumerate(ends) if index < end)
            return parts[part][index - ends[part]]  # negative: counted from the part's end

        return cls([name for part in parts for name in part.names], make)

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> Tasks: ...

    def __getitem__(self, index: int | slice) -> Task | Tasks:
        """Return a task, or some of them, as lazy as before."""
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return Tasks(self.names[index], lambda i: self._make(chosen[i]))
        return self._make(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator[Task]:
        """Make and yield one task after the other."""
        return map(self._make, range(len(self)))

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.names)

    def __repr__(self) -> str:
        """Return one line: how many, and the first names."""
        shown = ", ".join(self.names[:3]) + (", …" if len(self) > 3 else "")
        return f"Tasks({len(self)}: {shown})"


def expect(who: str, root: Path, files: Sequence[str], origin: str) -> None:
    """Make sure that a data set is where it should be.

    Args:
        who: The source, for the message.
        root: The data set's folder.
        files: What has to be in it, relative to it.
        origin: Where to get the data set.

    Raises:
        ValueError: If something is missing; names it and its origin.
    """
    missing = [name for name in files if not os.path.exists(root / name)]
    if missing:
        what = ", ".join(missing) if root.is_dir() else "no such folder"
        raise ValueError(
            f"{who}: expected {', '.join(files)} in {root}, got {'no ' if root.is_dir() else ''}{what}; "
            f"name the folder that holds them, or get them from {origin}."
        )


def read_json(who: str, file: Path) -> Any:
    """Return what a JSON file holds.

    Args:
        who: The source, for the message.
        file: The file.

    Returns:
        The content.

    Raises:
        ValueError: If it is damaged; names it.
    """
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{who}: expected whole JSON in {file}, got: {error}; unpack or download it again.") from error
