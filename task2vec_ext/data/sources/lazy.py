"""What all sources share: tasks that are made when asked for, and checks of the files they read."""

from __future__ import annotations

import json
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from ..folder import Files, check_no_twins, on_disk
from ..task import Task


class Tasks(Sequence[Task]):
    """A sequence of tasks, each made when it is asked for: a thousand of them take the memory of their names.

    Args:
        names: One for each task, all different.
        make: Returns the task at an index; reads no image.

    Raises:
        ValueError: If two tasks have the same name.

    Note:
        Every access makes a new task. Loop over them; ``list(tasks)`` would hold all of them at once.
    """

    def __init__(self, names: Sequence[str], make: Callable[[int], Task]) -> None:
        """Check the names; make no task."""
        twins = [name for name, count in Counter(names).items() if count > 1]
        if twins:
            shown = ", ".join(map(repr, twins[:5])) + (", …" if len(twins) > 5 else "")
            raise ValueError(
                f"Tasks: expected every task to have a name of its own, got {shown} more than once; "
                "name each source once, and name tasks of equal folders: NAME=PATH (in Python as_task(…, name=…))."
            )
        check_no_twins("Tasks", names, "tasks")
        self.names = tuple(names)
        self._make = make

    @classmethod
    def joined(cls, parts: Sequence[Tasks]) -> Tasks:
        """Return the tasks of all parts, one part after the other; their names must differ between parts, too."""
        places = [(part, index) for part in parts for index in range(len(part))]
        return cls([part.names[index] for part, index in places], lambda i: places[i][0][places[i][1]])

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> Tasks: ...

    def __getitem__(self, index: int | slice) -> Task | Tasks:
        """Return a task, or some of them."""
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return Tasks(self.names[index], lambda i: self._make(chosen[i]))
        return self._make(range(len(self))[operator.index(index)])

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.names)

    def __repr__(self) -> str:
        """Return one line: how many, and the first names."""
        shown = ", ".join(self.names[:3]) + (", …" if len(self) > 3 else "")
        return f"Tasks({len(self)}: {shown})"


def expect(who: str, root: Path, files: Sequence[str], origin: str) -> None:
    """Check that files exist, relative to a data set's folder; `origin` is where to get them."""
    missing = [name for name in files if not os.path.exists(on_disk(os.path.join(root, name)))]
    if missing:
        what = ", ".join(missing) if root.is_dir() else "no such folder"
        raise ValueError(
            f"{who}: expected {', '.join(files)} in {root}, got {'no ' if root.is_dir() else ''}{what}; "
            f"name the folder that holds them, or get them from {origin}."
        )


def read_json(who: str, file: Path) -> Any:
    """Return the content of a JSON file, or raise if it is damaged."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{who}: expected valid JSON in {file}, got: {error}; unpack or download it again.") from error


def records(who: str, file: Path, part: str, entries: Any, *keys: str) -> Iterator[tuple[Any, ...]]:
    """Yield the values that every entry of a part of a JSON file has under some keys, or raise at one that lacks them.

    Args:
        who: The source.
        file: Where the entries are from, for messages.
        part: What messages call them.
        entries: A list of dictionaries.
        *keys: Of the values.

    Raises:
        ValueError: If it is no list of dictionaries, or one lacks a key.
    """
    if not isinstance(entries, list):
        raise ValueError(
            f"{who}: expected a list of {part} in {file}, got {type(entries).__name__}; download or unpack it again."
        )
    for number, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or entry.get(key) is None]
        if missing:
            raise ValueError(
                f"{who}: expected {' and '.join(keys)} in all {part} of {file}, got none of {', '.join(missing)} in "
                f"number {number}: {entry!r:.80}; download or unpack it again."
            )
        yield tuple(entry[key] for key in keys)


def files_task(
    root: Path, files: Sequence[str], labels: Tensor, *, name: str, classes: Sequence[str], metadata: Mapping[str, Any]
) -> Task:
    """Return a task of some files of a data set, given relative to its absolute folder; `labels` are ``[N]`` int64."""
    source = Files.below(root, files, tuple(labels.tolist()))
    return Task(source, name=name, classes=tuple(classes), labels=labels, metadata=metadata)
