"""What data sets say of themselves without reading an image: labels, classes, names, files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from .._util.warnings import Task2VecWarning
from .folder import check_no_splits
from .labels import label_tensor, number_names, tidy
from .targets import kind_of


def check_map_style(source: Any) -> None:
    """Raise unless a source has a length and items."""
    if isinstance(source, DataLoader):
        advice = "pass the data set inside it, loader.dataset"
    elif isinstance(source, IterableDataset):
        advice = "pass a map-style data set, or read a finite one into a list first: list(data_set)"
    elif isinstance(source, Mapping) and source and all(map(_has_items, source.values())):
        splits = ", ".join(map(str, list(source)[:5]))
        advice = f"name one of its splits or columns ({splits}): data_set[…]; of columns pass pairs of (image, label)"
    elif isinstance(source, (Mapping, set, frozenset, Tensor, np.ndarray)):
        advice = "pass pairs of (image, label), for instance TensorDataset(images, labels) or a list"
    elif not _has_items(source):
        advice = "give it __len__ and __getitem__, or read it into a list first: list(...)"
    else:
        return
    raise TypeError(
        f"as_task: expected a map-style data set, a folder or a list of (path, label), got {kind_of(source)}; {advice}."
    )


def _has_items(source: Any) -> bool:
    return hasattr(source, "__len__") and hasattr(source, "__getitem__")


def listed_classes(dataset: Any) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Return ``[N]`` labels that a data set lists, and the classes' names; None what is unknown.

    Raises:
        ValueError: If the classes are splits, or the labels of a `TensorDataset` cannot be classes.
        TypeError: If the labels of a `TensorDataset` are not integers.
    """
    listed, classes = _labels_of(dataset), _classes_of(dataset)
    if listed is not None and not isinstance(listed, Tensor):
        numbered, named = number_names(listed, who="as_task")
        if classes is None or not set(named) <= set(map(tidy, classes)):
            return numbered, named
        places = [list(map(tidy, classes)).index(name) for name in named]
        return torch.tensor(places)[numbered], classes
    if classes is not None:
        name = name_of(dataset)
        check_no_splits(classes, f"as_task: expected a data set of classes in {name!r}", f"{name} of one of them")
    elif clash := _clash(dataset):
        warnings.warn(
            f"as_task: of {name_of(dataset)!r}, the data sets that it joins number their classes differently: "
            f"{clash}. Their images count as one class; task2vec_ext.data.union joins tasks by the classes' names",
            Task2VecWarning,
            stacklevel=3,
        )
    return listed, classes


def _labels_of(dataset: Any) -> Tensor | list[str] | None:
    """The labels that a data set lists, numbers or names, or None."""
    if isinstance(dataset, Subset):
        inner = _labels_of(dataset.dataset)
        if isinstance(inner, list):
            return [inner[int(i)] for i in dataset.indices]
        return None if inner is None else inner[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [_labels_of(part) for part in dataset.datasets]
        numbers, names = [p for p in parts if isinstance(p, Tensor)], [p for p in parts if isinstance(p, list)]
        if len(numbers) == len(parts):
            return torch.cat(numbers)
        return [name for part in names for name in part] if len(names) == len(parts) else None
    if getattr(dataset, "target_transform", None) is not None:
        return None  # its items have other labels than those listed
    if isinstance(dataset, TensorDataset):
        return label_tensor(dataset.tensors[1], who="as_task") if len(dataset.tensors) == 2 else None
    for attribute in ("targets", "labels", "_labels"):
        # Some data sets keep class names, attribute tables or boxes under these names.
        candidate = getattr(dataset, attribute, None)
        try:
            if candidate is None or len(candidate) != len(dataset):
                continue
            if isinstance(next(iter(candidate), None), str):
                values = list(candidate)
                if all(isinstance(value, str) for value in values) and len(set(values)) < len(values):
                    return values
            return label_tensor(candidate, who="as_task")
        except (TypeError, ValueError):
            continue
    return None


def _classes_of(dataset: Any) -> tuple[str, ...] | None:
    if isinstance(dataset, Subset):
        return _classes_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        parts = {_classes_of(part) for part in dataset.datasets}
        return parts.pop() if len(parts) == 1 else None
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    return None


def _clash(dataset: Any) -> str:
    """A number that is two classes in data sets that are concatenated, in words; "" where there is none."""
    if isinstance(dataset, Subset):
        return _clash(dataset.dataset)
    if not isinstance(dataset, ConcatDataset):
        return ""
    names: dict[int, str] = {}
    for part in dataset.datasets:
        for number, name in enumerate(map(tidy, _classes_of(part) or ())):
            if names.setdefault(number, name) != name:
                return f"{number} is {names[number]!r} and {name!r}"
    return next(filter(None, map(_clash, dataset.datasets)), "")


def name_of(dataset: Any) -> str:
    """Return what messages call a data set: a task's name, otherwise its type."""
    if isinstance(dataset, Subset):
        return name_of(dataset.dataset)
    name = getattr(dataset, "task_name", None)
    return name if isinstance(name, str) else type(dataset).__name__


def file_of(dataset: Any, index: int) -> str | None:
    """Return the file of an item, or None; never fails."""
    try:
        if isinstance(dataset, Subset):
            return file_of(dataset.dataset, int(dataset.indices[index]))
        if isinstance(dataset, ConcatDataset):
            part = next(i for i, size in enumerate(dataset.cumulative_sizes) if index < size)
            before = dataset.cumulative_sizes[part - 1] if part else 0
            return file_of(dataset.datasets[part], index - before)
        if hasattr(dataset, "file_name"):
            return dataset.file_name(index)
        path = dataset.samples[index][0]  # torchvision's ImageFolder and its kin
        return os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    except Exception:  # a foreign data set may have anything under these names
        return None


def with_two_labels(paths: Sequence[str], labels: Sequence[Any]) -> list[str]:
    """Return the files that a list has with more than one label."""
    first: dict[str, Any] = {}
    return list(
        dict.fromkeys(path for path, label in zip(paths, labels, strict=True) if first.setdefault(path, label) != label)
    )


__all__ = ["check_map_style", "file_of", "listed_classes", "name_of", "with_two_labels"]
