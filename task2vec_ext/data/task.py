"""Tasks: labelled data sets seen as problems to solve, made by `as_task` of folders, lists and data sets."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from .folder import Files, files_from_folder, files_from_list, unlabelled_files
from .images import to_rgb
from .labels import label_tensor
from .targets import ClassLabel, Mask, Target, Unlabelled, kind_of


class Task(Dataset[tuple[Tensor, Any]]):
    """A labelled data set seen as a problem to solve. Use `as_task` to make one.

    Args:
        source: Anything with ``len()`` whose items are pairs of (image, label).
        name: Name of the task in messages, tables and plots.
        classes: The classes' names, if the source has them.
        labels: ``[N]`` int64 class labels; None if they are known only after reading the items.
        target: What the labels are; default: classes.
        metadata: Other facts, JSON only; an embedding of the task keeps them. `task2vec_ext.data.sources` sets
            ``domain``, ``rank`` and ``taxonomy`` (rank -> taxon) or ``attribute``.

    Raises:
        TypeError: If the metadata are not JSON.
    """

    def __init__(
        self,
        source: Any,
        *,
        name: str,
        classes: tuple[str, ...] | None = None,
        labels: Tensor | None = None,
        target: Target | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the source; read nothing."""
        self.source = source
        self.name = name
        self.target = target or ClassLabel()
        self.classes = classes if self.target.named else None
        self.labels = labels if isinstance(self.target, ClassLabel) else None
        self.metadata: dict[str, Any] = json.loads(json.dumps(dict(metadata or {})))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def __repr__(self) -> str:
        """Return one line: name, images, classes."""
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"Task({self.name!r}, {len(self)} images{classes})"

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """Return an image as RGB ``[3, H, W]`` (see `to_rgb`), not preprocessed, and its label."""
        image, label = self.item(index)
        return to_rgb(image), label

    def item(self, index: int) -> tuple[Any, Any]:
        """Return the image at a position 0…N−1 as the source gives it, and its label as the task's target reads it.

        Raises:
            ValueError: If the source fails on this image (its error is the cause), or the label is not the one that
                the source lists.
            TypeError: If the item is not a pair, or its label has the wrong type.
        """
        try:
            item = self.source[index]
        except (ValueError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        where = self.describe(index)
        image, value = self.target.split(item, who="Task", where=where)
        label = self.target.read(value, who="Task", where=where)
        if self.labels is not None and label != int(self.labels[index]):
            raise ValueError(
                f"Task: expected label {int(self.labels[index])} as listed by the data set, got {label} for "
                f"{where}; make its list of labels and its items agree."
            )
        return image, label

    def digest(self) -> str | None:
        """Return the SHA-256 of the files' names, sizes and labels; None if the images are not files."""
        return self.source.digest() if isinstance(self.source, Files) else None

    def describe(self, index: int) -> str:
        """Return an image's name in messages: ``image 12 (cats/a.jpg)``, or ``image 12`` if it is not a file."""
        file = _file_of(self.source, index)
        return f"image {index}" if file is None else f"image {index} ({file})"


TaskSource = Task | Dataset[Any] | str | os.PathLike[str] | Sequence[tuple[Any, Any]] | Sequence[str | os.PathLike[str]]


def as_task(source: TaskSource, *, name: str | None = None, target: Target | None = None) -> Task:
    """Return a task made of a folder, a list or a data set. No image is read.

    Args:
        source: One of these.

            - the path of a folder with one folder of images per class; the classes are numbered in sorted order;
            - a list of (path, label), or of (image, label) with images in memory;
            - a map-style data set of (image, label). Its labels are taken from ``.targets``, ``.labels`` or
              ``._labels``, also through ``Subset`` and ``ConcatDataset``, unless it has a ``target_transform``;
            - for ``target=Unlabelled()`` also a folder or a list of images;
            - a `Task`, which is returned, with another name or target if they are given.
        name: Name of the task; default: the folder's or the data set's.
        target: What the labels are; default: a `Task`'s own, otherwise classes.

    Raises:
        TypeError: If the source is none of these or iterable-style, or a label is not an integer.
        ValueError: If a path does not exist, or a folder is not laid out as expected.
    """
    if isinstance(source, Task):
        name, target = name or source.name, target or source.target
        if target != source.target:
            return Task(source.source, name=name, classes=source.classes, target=target, metadata=source.metadata)
        if name == source.name:
            return source
        task = copy.copy(source)
        task.name = name
        return task
    target = target or ClassLabel()
    if isinstance(source, (str, os.PathLike)):
        root = Path(source).expanduser()
        name = name or root.resolve().name
        if isinstance(target, Unlabelled):
            return Task(unlabelled_files(root), name=name, target=target)
        files, classes = files_from_folder(root)
        listed = torch.tensor(files.labels, dtype=torch.int64)
        return Task(files, name=name, classes=classes, labels=listed, target=target)
    if isinstance(source, (list, tuple)):
        return _from_list(source, name or "list", target)
    _check_map_style(source)
    labels = _labels_of(source) if isinstance(target, ClassLabel) else None
    return Task(source, name=name or _name_of(source), classes=_classes_of(source), labels=labels, target=target)


def read_labels(task: Task) -> Tensor:
    """Return a task's class labels, ``[N]`` int64. Reads every image once if the source does not list them.

    Raises:
        ValueError: If an image cannot be read. The message has the image and the reason.
        TypeError: If an item is not a pair, or a label not an integer.
    """
    if task.labels is not None:
        return task.labels
    labels = torch.empty(len(task), dtype=torch.int64)
    for index in range(len(task)):
        try:
            labels[index] = task.item(index)[1]
        except ValueError as error:
            raise ValueError(
                f"read_labels: expected readable images, got {task.describe(index)}: {error}; "
                "replace or remove it, or give the data set a list of its labels, .targets."
            ) from error
    return labels


def check_indices(task: Task, indices: Tensor | Sequence[int], *, who: str) -> Tensor:
    """Return the positions of some of a task's images as ``[n]`` int64, or raise if there is no such image."""
    wanted = torch.as_tensor(indices)
    if wanted.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if wanted.ndim != 1 or wanted.dtype == torch.bool or wanted.is_floating_point():
        raise TypeError(
            f"{who}: expected integer indices [n], got {wanted.dtype} of shape {list(wanted.shape)}; "
            "turn a mask into indices with mask.nonzero()[:, 0]."
        )
    low, high = (int(v) for v in wanted.aminmax())
    if low < 0 or high >= len(task):
        raise ValueError(f"{who}: expected indices in 0…{len(task) - 1}, got {low if low < 0 else high}; correct them.")
    return wanted.to("cpu", torch.int64)


def _from_list(source: Sequence[Any], name: str, target: Target) -> Task:
    pairs = [target.split(item, who="as_task", where=f"index {index}") for index, item in enumerate(source)]
    images, given, labels = [image for image, _ in pairs], [label for _, label in pairs], None
    if isinstance(target, ClassLabel):
        labels = label_tensor(given, who="as_task")
        given = labels.tolist()
    else:
        for index, value in enumerate(given):  # checked before any work; files of masks are read with their images
            if not isinstance(value, (str, os.PathLike)) or not isinstance(target, Mask):
                target.read(value, who="as_task", where=f"index {index}")
    are_paths = [isinstance(image, (str, os.PathLike)) for image in images]
    if all(are_paths):
        return Task(files_from_list(images, given), name=name, labels=labels, target=target)
    for index, image in enumerate(images):
        if any(are_paths) or not isinstance(image, (Image.Image, Tensor, np.ndarray)):
            raise TypeError(
                "as_task: expected either paths or images (PIL, tensor, array) in a list, got "
                f"{kind_of(image)} at index {index}; make them all of one kind."
            )
    return Task(source, name=name, labels=labels, target=target)


def _check_map_style(source: Any) -> None:
    if isinstance(source, DataLoader):
        advice = "pass the data set inside it, loader.dataset"
    elif isinstance(source, IterableDataset):
        advice = "pass a map-style data set, or read a finite one into a list first: list(data_set)"
    elif isinstance(source, (Mapping, set, frozenset, Tensor, np.ndarray)):
        advice = "pass pairs of (image, label), for instance TensorDataset(images, labels) or a list"
    elif not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        advice = "give it __len__ and __getitem__, or read it into a list first: list(...)"
    else:
        return
    raise TypeError(
        f"as_task: expected a map-style data set, a folder or a list of (path, label), got {kind_of(source)}; {advice}."
    )


def _labels_of(dataset: Any) -> Tensor | None:
    """The labels that a data set lists, or None."""
    if isinstance(dataset, Subset):
        inner = _labels_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        known = [part for part in map(_labels_of, dataset.datasets) if part is not None]
        return torch.cat(known) if len(known) == len(dataset.datasets) else None
    if getattr(dataset, "target_transform", None) is not None:
        return None  # its items have other labels than those listed
    listed = [getattr(dataset, attribute, None) for attribute in ("targets", "labels", "_labels")]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        listed.append(dataset.tensors[1])
    for candidate in listed:
        # Some data sets keep class names, attribute tables or boxes under these names.
        try:
            if candidate is not None and len(candidate) == len(dataset):
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


def _name_of(dataset: Any) -> str:
    if isinstance(dataset, Subset):
        return _name_of(dataset.dataset)
    return dataset.name if isinstance(dataset, Task) else type(dataset).__name__


def _file_of(dataset: Any, index: int) -> str | None:
    """The file of an item, or None; never fails."""
    try:
        if isinstance(dataset, Task):
            return _file_of(dataset.source, index)
        if isinstance(dataset, Files):
            return dataset.names[index]
        if isinstance(dataset, Subset):
            return _file_of(dataset.dataset, int(dataset.indices[index]))
        if isinstance(dataset, ConcatDataset):
            part = next(i for i, size in enumerate(dataset.cumulative_sizes) if index < size)
            before = dataset.cumulative_sizes[part - 1] if part else 0
            return _file_of(dataset.datasets[part], index - before)
        path = dataset.samples[index][0]  # torchvision's ImageFolder and its kin
        return os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    except Exception:  # a foreign data set may have anything under these names
        return None
