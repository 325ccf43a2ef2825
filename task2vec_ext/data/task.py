"""Tasks: labelled data sets seen as problems to solve, made by `as_task` of folders, lists and data sets."""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from .._util.warnings import Task2VecWarning
from .._util.words import counted
from .columns import is_frame, is_rows, pairs_of_frame, rows_of
from .folder import Files, files_from_folder, files_from_list, unlabelled_files
from .foreign import check_map_style, file_of, listed_classes, name_of, with_two_labels
from .identity import Change, change_of_files, digest_of_memory, record_of_files, same_digest
from .images import is_machines_fault, to_rgb
from .labels import label_tensor, number_names, tidy
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
        max_value: The pixel value of white, see `to_rgb`. `Files` have their own.

    Raises:
        TypeError: If the metadata are not JSON, or labels not integers.
        ValueError: If there is not one label for each image, or `max_value` is not positive.
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
        max_value: float | None = None,
    ) -> None:
        """Keep the source; read nothing."""
        if max_value is not None and not 0 < max_value < math.inf:
            raise ValueError(f"Task: expected max_value > 0, the pixel value of white, got {max_value}; correct it.")
        self.source = (
            source if max_value is None or not isinstance(source, Files) else replace(source, max_value=max_value)
        )
        self.name = name
        self.target = target or ClassLabel()
        self.classes = tuple(classes) if classes is not None and self.target.named else None
        self.labels = None
        if labels is not None and isinstance(self.target, ClassLabel):
            self.labels = label_tensor(labels, who="Task")
            if len(self.labels) != len(source):
                raise ValueError(
                    f"Task: expected a label for each of the {len(source)} images of {name!r}, got "
                    f"{len(self.labels)}; correct the list of labels."
                )
        self._max_value = max_value
        self._numbers: dict[str, int] = {}  # of the classes' names, once items need them
        self.metadata: dict[str, Any] = json.loads(json.dumps(dict(metadata or {})))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def __repr__(self) -> str:
        """Return one line: name, images, classes."""
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"Task({self.name!r}, {counted(len(self), 'image')}{classes})"

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """Return an image as RGB ``[3, H, W]`` (see `to_rgb`), not preprocessed, and its label."""
        image, label = self.item(index)
        return to_rgb(image, max_value=None if isinstance(self.source, Files) else self._max_value), label

    @property
    def max_value(self) -> float | None:
        """The pixel value of white, where it was given."""
        return self.source.max_value if isinstance(self.source, Files) else self._max_value

    @property
    def task_name(self) -> str:
        """The name, under another word than foreign data sets use."""
        return self.name

    def item(self, index: int) -> tuple[Any, Any]:
        """Return the image at a position 0…N−1 as the source gives it, and its label as the task's target reads it.

        Raises:
            ValueError: If the source fails on this image (its error is the cause) or has None in its place, or the
                label is not the one that the source lists.
            TypeError: If the item is not a pair, or its label has the wrong type.
            MemoryError: If memory is lacking.
        """
        image, value = self._given(index)
        return image, self._label(value, index)

    def listed_target(self, index: int) -> Any:
        """Return an image's target as `item` does, without reading the image; None where that cannot be."""
        if self.labels is not None:
            return int(self.labels[index])
        if isinstance(self.source, Files) and not isinstance(self.target, Mask):
            return self._label(self.source.labels[index], index)
        return None

    def _label(self, value: Any, index: int) -> Any:
        """A label as the target reads it, and as the source lists it."""
        where = self.describe(index)
        if isinstance(value, str) and isinstance(self.target, ClassLabel) and self.classes is not None:
            if len(self._numbers) != len(self.classes):
                self._numbers = {tidy(name): number for number, name in enumerate(self.classes)}
            if (name := tidy(value)) not in self._numbers:
                known = ", ".join(self.classes[:5]) + ", …" * (len(self.classes) > 5)
                raise ValueError(f"Task: expected a label of {self.name!r} ({known}), got {value!r} for {where}.")
            value = self._numbers[name]
        label = self.target.read(value, who="Task", where=where)
        if self.labels is not None and label != int(self.labels[index]):
            raise ValueError(
                f"Task: expected label {int(self.labels[index])} as listed by the data set, got {label} for "
                f"{where}; make its list of labels and its items agree."
            )
        return label

    def _given(self, index: int) -> tuple[Any, Any]:
        """An image and its label, both as the source gives them."""
        try:
            item = self.source[index]
        except (ValueError, MemoryError):
            raise
        except Exception as error:
            if is_machines_fault(error):
                raise
            raise ValueError(f"{type(error).__name__}: {error}") from error
        image, value = (None, None) if item is None else self.target.split(item, who="Task", where=self.describe(index))
        if image is None:
            raise ValueError(f"Task: expected an image from the data set, got None for {self.describe(index)}.")
        return image, value

    def has_unread_names(self) -> bool:
        """Return whether the classes are names that only the items tell; reads the first of them."""
        if self.labels is not None or self.classes is not None or not isinstance(self.target, ClassLabel):
            return False
        try:
            return isinstance(self._given(0)[1], str)
        except Exception:  # told when all are read
            return False

    def digest(self) -> str | None:
        """Return what tells these images and labels from others, None where that is unknown.

        Known are files, images in memory and data sets of Hugging Face's `datasets`.
        """
        if isinstance(self.source, (list, tuple)):
            return digest_of_memory(self.source)
        if isinstance(self.source, TensorDataset) and len(self.source.tensors) == 2:
            return digest_of_memory([self.source.tensors])
        found = getattr(self.source, "digest", None)
        return found() if callable(found) else None

    def record(self) -> str | None:
        """Return the digest with the files' times, which makes `change_since` fast."""
        return record_of_files(self.source) if isinstance(self.source, Files) else self.digest()

    def change_since(self, record: str | None) -> Change:
        """Return what became of the images since a `record`, or a digest, of them.

        Returns:
            ``"same"``; ``"replaced"``: other images under the same names and labels; ``"other"``: other names or
            labels. Images of which nothing is recorded are the same.
        """
        if record is None:
            return "same"
        if isinstance(self.source, Files):
            return change_of_files(self.source, record)
        return "same" if same_digest(record, self.digest()) else "other"

    def file_name(self, index: int) -> str | None:
        """Return what messages call the file of an image, None if it is not one."""
        return file_of(self.source, index)

    def describe(self, index: int) -> str:
        """Return an image's name in messages: ``image 12 (cats/a.jpg)``, or ``image 12`` if it is not a file."""
        file = self.file_name(index)
        return f"image {index}" if file is None else f"image {index} ({file})"


TaskSource = Task | Dataset[Any] | str | os.PathLike[str] | Sequence[tuple[Any, Any]] | Sequence[str | os.PathLike[str]]


def as_task(
    source: TaskSource, *, name: str | None = None, target: Target | None = None, max_value: float | None = None
) -> Task:
    """Return a task made of a folder, a list, a table or a data set. No image is read.

    Args:
        source: One of these.

            - the path of a folder with one folder of images per class; the classes are numbered in sorted order;
            - a list of (path, label), or of (image, label) with images in memory;
            - a data frame (pandas, polars, pyarrow) with the columns ``path`` and ``label``, or with two columns;
            - a data set of Hugging Face's `datasets` with a column of images and one of labels;
            - a map-style data set of (image, label). Its labels are taken from ``.targets``, ``.labels`` or
              ``._labels``, also through ``Subset`` and ``ConcatDataset``, unless it has a ``target_transform``;
            - for ``target=Unlabelled()`` also a folder or a list of images;
            - a `Task`, which is returned, with another name, target or `max_value` if they are given.

            Labels that are text become classes 0…C−1 in sorted order.
        name: Name of the task; default: the folder's or the data set's.
        target: What the labels are; default: a `Task`'s own, otherwise classes.
        max_value: The pixel value of white, such as 4095 for 12 bits in 16-bit files; default: see `to_rgb`.

    Raises:
        TypeError: If the source is none of these or iterable-style, or a label neither an integer nor text.
        ValueError: If a path does not exist, a folder is not laid out as expected, or `max_value` is not positive.
    """
    if isinstance(source, Task):
        return _changed(source, name or source.name, target or source.target, max_value)
    target = target or ClassLabel()
    if isinstance(source, (str, os.PathLike)):
        root = Path(source).expanduser()
        name = name or root.resolve().name
        if isinstance(target, Unlabelled):
            return Task(unlabelled_files(root), name=name, target=target, max_value=max_value)
        files, classes = files_from_folder(root)
        listed = torch.tensor(files.labels, dtype=torch.int64)
        return Task(files, name=name, classes=classes, labels=listed, target=target, max_value=max_value)
    if is_frame(source):
        source, name = pairs_of_frame(source), name or type(source).__name__
    if isinstance(source, (list, tuple)):
        return _from_list(source, name or "list", target, max_value)
    if is_rows(source):
        source, name = rows_of(source), name or _title(source)
    check_map_style(source)
    labels, names = (
        listed_classes(source) if isinstance(target, ClassLabel) else (None, getattr(source, "classes", None))
    )
    name = name or name_of(source)
    return Task(source, name=name, classes=names, labels=labels, target=target, max_value=max_value)


def read_labels(task: Task) -> Tensor:
    """Return a task's class labels, ``[N]`` int64. Reads every image once if the source does not list them.

    Labels that turn out to be text are numbered, and the task keeps their numbers and names.

    Raises:
        ValueError: If an image cannot be read. The message has the image and the reason.
        TypeError: If an item is not a pair, or a label neither an integer nor text.
    """
    if task.labels is not None:
        return task.labels
    named = False
    labels: list[Any] = []
    for index in range(len(task)):
        try:
            value = task._given(index)[1]
            if index == 0:
                named = isinstance(value, str) and task.classes is None
            labels.append(value if named else task._label(value, index))
        except ValueError as error:
            raise ValueError(
                f"read_labels: expected readable images, got {task.describe(index)}: {error}; "
                "replace or remove it, or give the data set a list of its labels, .targets."
            ) from error
    if named:
        task.labels, task.classes = number_names(labels, who="read_labels", where="image")
        return task.labels
    return torch.tensor(labels, dtype=torch.int64)


def _changed(task: Task, name: str, target: Target, max_value: float | None) -> Task:
    """A task under another name, or with another target or value of white."""
    if target != task.target or max_value not in (None, task.max_value):
        labels = task.labels if target == task.target else None
        white = task.max_value if max_value is None else max_value
        return Task(
            task.source,
            name=name,
            classes=task.classes,
            labels=labels,
            target=target,
            metadata=task.metadata,
            max_value=white,
        )
    if name == task.name:
        return task
    task = copy.copy(task)
    task.name = name
    return task


def _title(rows: Any) -> str:
    """A name of a data set of `datasets`: the one it came with, and its split."""
    parts = (getattr(rows.info, "dataset_name", None), rows.split)
    return " ".join(str(part) for part in parts if part) or type(rows).__name__


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


def _from_list(source: Sequence[Any], name: str, target: Target, max_value: float | None) -> Task:
    pairs = [target.split(item, who="as_task", where=f"index {index}") for index, item in enumerate(source)]
    images, given = [image for image, _ in pairs], [label for _, label in pairs]
    labels, classes = None, None
    if isinstance(target, ClassLabel):
        if any(isinstance(label, str) for label in given):
            labels, classes = number_names(given, who="as_task")
        else:
            labels = label_tensor(given, who="as_task")
        given = labels.tolist()
    else:
        for index, value in enumerate(given):  # checked before any work; files of masks are read with their images
            if not isinstance(value, (str, os.PathLike)) or not isinstance(target, Mask):
                target.read(value, who="as_task", where=f"index {index}")
    are_paths = [isinstance(image, (str, os.PathLike)) for image in images]
    if all(are_paths):
        files = files_from_list(images, given)
        if labels is not None and (twice := with_two_labels(files.paths, given)):
            warnings.warn(
                f"as_task: of {name!r}, {counted(len(twice), 'file')} with more than one label ({', '.join(twice[:5])}"
                f'{", …" * (len(twice) > 5)}); correct the list, or pass loss="multilabel"',
                Task2VecWarning,
                stacklevel=3,
            )
        return Task(files, name=name, classes=classes, labels=labels, target=target, max_value=max_value)
    for index, image in enumerate(images):
        if any(are_paths) or not isinstance(image, (Image.Image, Tensor, np.ndarray, type(None))):
            raise TypeError(
                "as_task: expected either paths or images (PIL, tensor, array) in a list, got "
                f"{kind_of(image)} at index {index}; make them all of one kind."
            )
    return Task(source, name=name, classes=classes, labels=labels, target=target, max_value=max_value)
