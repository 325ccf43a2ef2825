"""Views of tasks: subsets, splits, unions, other classes. No image is read or copied."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from .folder import Files
from .labels import draw, tidy
from .targets import ClassLabel
from .task import Task, check_indices, read_labels


def subset(task: Task, indices: Tensor | Sequence[int], *, name: str | None = None) -> Task:
    """Return a task of some of a task's images, with the same labels.

    Args:
        task: The task.
        indices: ``[n]`` positions of the images, in the order wanted.
        name: Of the view; default: the task's.

    Raises:
        ValueError: If the task has no such image.
        TypeError: If the indices are not integers.
    """
    chosen = check_indices(task, indices, who="subset")
    return _view([task], chosen, _labels(task)[chosen], task.classes, name or task.name)


def split(task: Task, share: float, *, seed: int = 0) -> tuple[Task, Task]:
    """Return two parts of a task, ``… 1/2`` and ``… 2/2``, each in its order, with the classes in the same proportions.

    Args:
        task: The task.
        share: Share of the images in the first part, in (0, 1). Every class gets at least one image there.
        seed: Of the random choice.

    Raises:
        ValueError: If the share is impossible, or the second part would lack a class.
    """
    one, two = hold_out(task, share, seed=seed)
    lacking = set(_labels(task).tolist()) - set(_labels(two).tolist())
    if lacking:
        raise ValueError(
            f"split: expected every class in both parts of {task.name!r}, got none of class {min(lacking)} in the "
            "second; lower the share, or leave out classes of few images (remap)."
        )
    return one, two


def hold_out(task: Task, share: float, *, seed: int = 0) -> tuple[Task, Task]:
    """Return two parts as `split` does; the second, to test on, may lack a class.

    Args:
        task: The task.
        share: See `split`.
        seed: Of the random choice.

    Raises:
        ValueError: If the share is impossible.
    """
    if not 0 < share < 1:
        raise ValueError(f"hold_out: expected a share between 0 and 1, got {share}.")
    labels = _labels(task)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[draw(labels, round(share * len(labels)), seed)] = False
    one, two = (
        subset(task, part.nonzero()[:, 0], name=f"{task.name} {i}/2") for i, part in enumerate((~rest, rest), 1)
    )
    return one, two


def remap(task: Task, classes: Mapping[str, str], *, name: str | None = None) -> Task:
    """Return a task with classes left out, merged or renamed.

    Args:
        task: The task.
        classes: Old class -> new class, numbered in the order of first occurrence; images of other classes are left
            out. The classes of a task without class names are "0", "1", ….
        name: Of the view; default: the task's.

    Raises:
        ValueError: If the task has no such class.
    """
    labels = _labels(task)
    old = _class_names(task, labels)
    forms = {tidy(given): given for given in classes}
    unknown = [given for form, given in forms.items() if form not in map(tidy, old)]
    if unknown:
        known, got = ", ".join(old[:5]) + ", …" * (len(old) > 5), ", ".join(map(repr, unknown[:5]))
        raise ValueError(f"remap: expected classes of {task.name!r} ({known}), got {got}.")
    new = tuple(dict.fromkeys(classes.values()))
    numbers = [new.index(classes[forms[tidy(given)]]) if tidy(given) in forms else -1 for given in old]
    mapped = torch.tensor(numbers)[labels]
    kept = (mapped >= 0).nonzero()[:, 0]
    return _view([task], kept, mapped[kept], new, name or task.name)


def one_vs_rest(task: Task, positive: str, *, name: str | None = None) -> Task:
    """Return the binary task of one class against all others: the classes ``not CLASS`` and ``CLASS``.

    Args:
        task: The task.
        positive: The class that gets label 1.
        name: Of the view; default: ``TASK: CLASS``.

    Raises:
        ValueError: If the task has no such class.
    """
    names = _class_names(task, _labels(task))
    rest = {given: f"not {positive}" for given in names if tidy(given) != tidy(positive)}
    return remap(task, {**rest, positive: positive}, name=name or f"{task.name}: {positive}")


def union(tasks: Sequence[Task], *, name: str) -> Task:
    """Return a task of all images of several tasks; classes of the same name, in any form of Unicode, are one class.

    Args:
        tasks: The tasks; the union has the metadata that all share.
        name: Of the union.

    Raises:
        ValueError: If there are no tasks.
    """
    if not tasks:
        raise ValueError("union: expected at least one task, got none.")
    given = [_labels(task) for task in tasks]
    names = [_class_names(task, labels) for task, labels in zip(tasks, given, strict=True)]
    forms: dict[str, str] = {}
    for title in (title for titles in names for title in titles):
        forms.setdefault(tidy(title), title)
    number = {form: i for i, form in enumerate(forms)}
    tables = [torch.tensor([number[tidy(title)] for title in titles], dtype=torch.int64) for titles in names]
    labels = torch.cat([table[labels] for table, labels in zip(tables, given, strict=True)])
    return _view(tasks, torch.arange(len(labels)), labels, tuple(forms.values()), name)


def _labels(task: Task) -> Tensor:
    if not isinstance(task.target, ClassLabel):
        raise TypeError(
            f"views: expected tasks of one class per image, got {task.name!r} of {type(task.target).__name__}; "
            "make the view of the data set before it becomes a task (torch.utils.data.Subset)."
        )
    return read_labels(task)


def _class_names(task: Task, labels: Tensor) -> tuple[str, ...]:
    return task.classes or tuple(map(str, range(int(labels.max()) + 1 if len(labels) else 0)))


def _view(tasks: Sequence[Task], indices: Tensor, labels: Tensor, classes: tuple[str, ...] | None, name: str) -> Task:
    """The images at some positions of the concatenated tasks, with these labels."""
    first = tasks[0].metadata
    metadata = {key: first[key] for key in first if all(task.metadata.get(key) == first[key] for task in tasks)}
    where, numbers = indices.tolist(), labels.tolist()
    sources = [task.source for task in tasks]
    white = {task.max_value for task in tasks}
    source: Any
    if all(isinstance(part, Files) for part in sources) and len(white) == 1:  # files stay files, with a digest
        paths = [path for part in sources for path in part.paths]
        files = [file for part in sources for file in part.names]
        source = Files(tuple(paths[i] for i in where), tuple(numbers), tuple(files[i] for i in where))
    else:
        source = _Relabelled(ConcatDataset(tasks), where, numbers)
    shared = white.pop() if len(white) == 1 else None  # otherwise `_Relabelled` divides
    return Task(source, name=name, classes=classes, labels=labels, metadata=metadata, max_value=shared)


class _Relabelled(Subset[Any]):
    """Items of concatenated tasks, as their sources give them, with other labels."""

    def __init__(self, tasks: ConcatDataset[Any], indices: list[int], labels: list[int]) -> None:
        super().__init__(tasks, indices)
        self._tasks: list[Task] = tasks.datasets  # type: ignore[assignment]
        self._ends, self._labels = tasks.cumulative_sizes, labels
        self._differ = len({part.max_value for part in self._tasks}) > 1

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        place = self.indices[index]
        part = bisect_right(self._ends, place)
        task, place = self._tasks[part], place - (self._ends[part - 1] if part else 0)
        image = task[place][0] if self._differ else task.item(place)[0]
        return image, self._labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        return [self[index] for index in indices]
