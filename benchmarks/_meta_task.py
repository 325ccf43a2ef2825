"""The tasks of a meta-task, and which of their images are to learn from and which to be tested on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch

from task2vec_ext import Task
from task2vec_ext.data import read_labels, remap, subset
from task2vec_ext.data.folder import Files


@dataclass(frozen=True)
class MetaTask:
    """One task, its images parted: every task of the same images parts them alike.

    Args:
        domain: What it is about; tasks of one domain may share images.
        train: To learn from, for experts, classifiers and embeddings.
        test: To measure errors on.
    """

    domain: str
    train: Task
    test: Task

    @property
    def name(self) -> str:
        """Return the task's name."""
        return self.train.name


def part(domain: str, task: Task, share: float = 0.5) -> MetaTask:
    """Return a task with its images parted by a hash of their files' names.

    So no expert has seen an image that any task is tested on, though tasks share images. Classes of which one part
    has no image are left out of both.

    Args:
        domain: Of the task.
        task: Of image files.
        share: Of the images that are to learn from, about.

    Raises:
        TypeError: If the task's images are no files.
    """
    if not isinstance(task.source, Files):
        raise TypeError(f"part: expected a task of image files, got {task.name!r}, whose images have no names.")
    names = task.classes or tuple(map(str, range(int(read_labels(task).max()) + 1)))
    learns = torch.tensor([_hash(file) < share for file in task.source.names])
    labels = read_labels(task)
    whole = [i for i in range(len(names)) if {True, False} <= set(learns[labels == i].tolist())]
    kept = {names[i]: names[i] for i in whole}
    parts = (subset(task, rows.nonzero()[:, 0]) for rows in (learns, ~learns))
    return MetaTask(domain, *(remap(one, kept, name=task.name) for one in parts))


def largest(tasks: Iterable[MetaTask], per_domain: int, fewest: int = 0) -> list[MetaTask]:
    """Return the tasks of most training images of each domain: a rule that knows no result.

    Args:
        tasks: To choose from; of equally large ones the first.
        per_domain: At most so many.
        fewest: Training images.
    """
    by_domain: dict[str, list[MetaTask]] = defaultdict(list)
    for task in tasks:
        if len(task.train) >= fewest:
            by_domain[task.domain].append(task)
    return [task for found in by_domain.values() for task in sorted(found, key=_size)[:per_domain]]


def count(task: Task, samples: int) -> int:
    """Return how many images to draw: `samples`, or two a class where there are many classes."""
    return max(samples, 2 * len(set(read_labels(task).tolist())))


def domains(tasks: Sequence[MetaTask]) -> dict[str, int]:
    """Return how many tasks each domain has."""
    found: dict[str, int] = defaultdict(int)
    for task in tasks:
        found[task.domain] += 1
    return dict(found)


def _size(task: MetaTask) -> int:
    return -len(task.train)


def _hash(file: str) -> float:
    """Return a number in [0, 1) from a file's folder and name: the same wherever the data lies."""
    name = "/".join(PurePath(file).parts[-2:])
    return int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) / 2**32
