"""Real tasks: from a folder the user names (see README.md), and with their images parted into two halves."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch

from task2vec_ext import Probe, Task, as_task, load_probe
from task2vec_ext.data import read_labels, remap, subset
from task2vec_ext.data.folder import Files


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks on real tasks share."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with tasks.json and weights/")
    arguments.add_argument("--probe", default="resnet18")
    arguments.add_argument("--image-size", type=int, default=112)
    return arguments


def probe(options: argparse.Namespace) -> Probe:
    """Return the probe the options name, with the folder's own weights."""
    weights = options.data / "weights" / f"{options.probe}.safetensors"
    return load_probe(options.probe, weights=weights, image_size=options.image_size)


def real_tasks(folder: Path, per_domain: int | None = None, only: list[str] | None = None) -> list[Task]:
    """Return the tasks of a folder: at most `per_domain` of each domain, spread evenly over its list."""
    by_domain = defaultdict(list)
    for entry in json.loads((folder / "tasks.json").read_text()):
        if only is None or entry["name"] in only:
            by_domain[entry["domain"]].append(entry)
    chosen = []
    for entries in by_domain.values():
        count = min(per_domain or len(entries), len(entries))
        for entry in (entries[i * len(entries) // count] for i in range(count)):
            pairs = [(folder / file, label) for label, files in enumerate(entry["classes"].values()) for file in files]
            task = as_task(pairs, name=entry["name"])
            task.metadata["domain"] = entry["domain"]
            chosen.append(task)
    return chosen


def domain(task: Task) -> str:
    """Return what a task is about; tasks of one domain may share images."""
    return str(task.metadata.get("domain", ""))


@dataclass(frozen=True)
class MetaTask:
    """A task whose images are parted; tasks that share images part them alike.

    Args:
        train: The images for experts, classifiers and embeddings.
        test: The images that errors are measured on.
    """

    train: Task
    test: Task

    @property
    def name(self) -> str:
        """Return the task's name."""
        return self.train.name

    @property
    def domain(self) -> str:
        """Return the task's domain."""
        return domain(self.train)


def part(task: Task, share: float = 0.5) -> MetaTask:
    """Return a task with its images parted by a hash of their files' names.

    No expert has seen an image that any task is tested on, even where tasks share images. Classes of which one part has
    no image are left out of both.

    Args:
        task: Its images are files.
        share: About the share of the images in `MetaTask.train`.

    Raises:
        TypeError: If the task's images are no files.
    """
    if not isinstance(task.source, Files):
        raise TypeError(f"part: expected a task of image files, got {task.name!r}, whose images have no names.")
    labels = read_labels(task)
    names = task.classes or tuple(map(str, range(int(labels.max()) + 1)))
    in_train = torch.tensor([_hash(file) < share for file in task.source.names])
    kept = {name: name for i, name in enumerate(names) if {True, False} <= set(in_train[labels == i].tolist())}
    parts = (subset(task, rows.nonzero()[:, 0]) for rows in (in_train, ~in_train))
    return MetaTask(*(remap(one, kept, name=task.name) for one in parts))


def largest(tasks: Iterable[MetaTask], per_domain: int, fewest: int = 0) -> list[MetaTask]:
    """Return the tasks with the most training images of each domain: the choice looks at no result.

    Args:
        tasks: To choose from; of equally large ones the first.
        per_domain: At most so many.
        fewest: Tasks with fewer training images are left out.
    """
    by_domain: dict[str, list[MetaTask]] = defaultdict(list)
    for task in tasks:
        if len(task.train) >= fewest:
            by_domain[task.domain].append(task)
    return [
        task for found in by_domain.values() for task in sorted(found, key=lambda one: -len(one.train))[:per_domain]
    ]


def domains(tasks: Iterable[MetaTask]) -> dict[str, int]:
    """Return how many tasks each domain has."""
    return dict(Counter(task.domain for task in tasks))


def num_samples(task: Task, least: int) -> int:
    """Return how many images to draw: `least`, or two a class where there are many classes."""
    return max(least, 2 * len(set(read_labels(task).tolist())))


def _hash(file: str) -> float:
    """Return a number in [0, 1) from a file's folder and name: the same wherever the data lie."""
    name = "/".join(PurePath(file).parts[-2:])
    return int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) / 2**32
