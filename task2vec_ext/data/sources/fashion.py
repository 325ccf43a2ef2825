"""iMaterialist-Fashion 2018 and DeepFashion: one task for each attribute, to tell whether an image shows it."""

from __future__ import annotations

import csv
import os
import warnings
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._util.warnings import Task2VecWarning
from ..folder import EXTENSIONS, Files
from ..targets import LabelSet
from ..task import Task
from .lazy import Tasks, expect, read_json

Indices = np.ndarray[Any, np.dtype[np.int32]]

_IMATERIALIST = "https://github.com/visipedia/imat_fashion_comp"
_DEEPFASHION = "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/AttributePrediction.html"
_HEADER = 2  # lines before the first entry of DeepFashion's lists: how many there are, and the columns' names
_SHOWS, _UNKNOWN = 1, 0  # in list_attr_img.txt; −1: does not


@dataclass(frozen=True)
class _Attributes:
    """Images and which of them show what."""

    who: str
    domain: str
    names: Mapping[int, str]
    paths: tuple[str, ...]
    files: tuple[str, ...]
    """Relative to the data set's root."""
    shows: Mapping[int, Indices]
    """Attribute -> the images that show it; and those of which nobody knows."""
    unknown: Mapping[int, Indices]

    def tasks(self, min_images: int) -> Tasks:
        """Return one task for each attribute that enough images show, and enough do not."""
        kept = self._kept(min_images)
        names = [f"{self.who} {self.names[attribute]}" for attribute in kept]
        return Tasks(names, lambda i: self._task(names[i], kept[i]))

    def as_one(self, min_images: int) -> Tasks:
        """Return one task of the same attributes, any number of them to an image."""
        kept = self._kept(min_images)
        labels = _MultiHot.of([self.shows[attribute] for attribute in kept], len(self.paths))
        task = Task(
            Files(self.paths, labels, self.files),
            name=self.who,
            classes=tuple(self.names[attribute] for attribute in kept),
            target=LabelSet(),
            metadata={"domain": self.domain},
        )
        return Tasks([task.name], lambda _: task)

    def _kept(self, min_images: int) -> list[int]:
        few = max(1, min_images)

        def enough(attribute: int) -> bool:
            yes, open_ = len(self.shows[attribute]), len(self.unknown.get(attribute, ()))
            return few <= yes <= len(self.paths) - open_ - few

        kept = [attribute for attribute in sorted(self.names) if attribute in self.shows and enough(attribute)]
        if not kept:
            raise ValueError(
                f"{self.who}: expected an attribute that {few} or more of the {len(self.paths)} images show and "
                f"{few} or more do not, got none; lower min_images, or check the images' folder."
            )
        return kept

    def _task(self, name: str, attribute: int) -> Task:
        labels = torch.zeros(len(self.paths), dtype=torch.int64)
        labels[torch.from_numpy(self.shows[attribute].astype(np.int64))] = 1
        paths, files = self.paths, self.files
        if len(self.unknown.get(attribute, ())):
            known = np.setdiff1d(np.arange(len(self.paths)), self.unknown[attribute])
            labels = labels[torch.from_numpy(known)]
            paths, files = tuple(paths[i] for i in known), tuple(files[i] for i in known)
        title = self.names[attribute]
        return Task(
            Files(paths, tuple(labels.tolist()), files),
            name=name,
            classes=(f"not {title}", title),
            labels=labels,
            metadata={"domain": self.domain, "attribute": title},
        )


@dataclass(frozen=True)
class _MultiHot(Sequence[Tensor]):
    """Which attributes each image shows: float32 ``[C]`` when asked for; of a million images they would be 1 GB."""

    columns: Indices
    """Of the first image's attributes, then the second's, …"""
    starts: np.ndarray[Any, np.dtype[np.int64]]
    num_classes: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        hot = torch.zeros(self.num_classes)
        hot[torch.from_numpy(self.columns[self.starts[index] : self.starts[index + 1]].astype(np.int64))] = 1
        return hot

    @classmethod
    def of(cls, shows: Sequence[Indices], images: int) -> _MultiHot:
        """Turn attribute -> images about."""
        columns = np.repeat(np.arange(len(shows), dtype=np.int32), [len(found) for found in shows])
        rows = np.concatenate(shows)
        starts = np.concatenate([[0], np.bincount(rows, minlength=images).cumsum()])
        return cls(columns[rows.argsort(kind="stable")], starts, len(shows))


def imaterialist(
    root: str | os.PathLike[str], *, split: str = "train", min_images: int = 1, multilabel: bool = False
) -> Tasks:
    """Return the tasks of iMaterialist-Fashion 2018: one for each of its 228 attributes, shown or not shown.

    Args:
        root: Folder with ``train.json``, the images as ``train/IMAGE_ID.jpg`` (published as links only) and, for the
            attributes' names, the label map as CSV (``*label*.csv`` with columns ``labelId``, ``labelName``,
            ``taskName``); without it an attribute is called by its number.
        split: ``train`` or ``validation``: names the JSON file and the folder.
        min_images: Attributes that fewer images show, or do not show, are left out.
        multilabel: One task with all attributes instead, for ``loss="multilabel"``.

    Returns:
        The tasks: class 0 does not show the attribute, class 1 does. All have all images that are on disk, and a
        warning says how many are not. Metadata: domain, attribute.

    Raises:
        ValueError: If a file is missing, or no attribute is left.

    Note:
        A task has a million images, few of which show the attribute: embed it with
        ``num_samples=…, class_balanced=True``.

    Source:
        Guo et al., arXiv 1906.05750; tasks: Achille et al., ICCV 2019, §5.
    """
    where = Path(os.path.abspath(root))
    expect("imat2018", where, [f"{split}.json", split], _IMATERIALIST)
    content = read_json("imat2018", where / f"{split}.json")
    # Asked once for the folder, not a million times for a file.
    there = {
        stem: name for name in os.listdir(where / split) for stem, end in [os.path.splitext(name)] if end in EXTENSIONS
    }
    listed = dict(_annotation(entry) for entry in content["annotations"])
    present = [image for image in listed if image in there]
    if not present:
        raise ValueError(
            f"imat2018: expected images {split}/IMAGE_ID.jpg in {where}, got none of the {len(listed)} that "
            f"{split}.json lists; download them from the links in it ({_IMATERIALIST})."
        )
    if len(present) < len(listed):
        warnings.warn(
            f"imat2018: {len(listed) - len(present)} of the {len(listed)} images in {split}.json are not in "
            f"{where / split}; the tasks have the others",
            Task2VecWarning,
            stacklevel=2,
        )
    found: defaultdict[int, array[int]] = defaultdict(_indices)
    for index, image in enumerate(present):
        for label in set(listed[image]):
            found[int(label)].append(index)
    shows = _as_arrays(found)
    files = tuple(f"{split}/{there[image]}" for image in present)
    names = {**{label: str(label) for label in shows}, **_label_names(where)}
    paths = tuple(os.path.join(where, file) for file in files)
    attributes = _Attributes("imat2018", "iMaterialist-Fashion 2018", names, paths, files, shows, {})
    return attributes.as_one(min_images) if multilabel else attributes.tasks(min_images)


def _annotation(entry: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Return image and labels, under the keys of the files or of their description."""
    if "imageId" in entry:
        return str(entry["imageId"]), entry["labelId"]
    return str(entry["image_id"]), entry["label_id"]


def _label_names(root: Path) -> dict[int, str]:
    """Return what the attributes are called: ``color Beige``, because categories and colours share names."""
    file = next(iter(sorted(root.glob("*label*.csv"))), None)
    if file is None:
        return {}
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return {int(row["labelId"]): f"{row['taskName']} {row['labelName']}" for row in csv.DictReader(lines)}


def deepfashion(root: str | os.PathLike[str], *, split: str = "all", min_images: int = 1) -> Tasks:
    """Return the tasks of DeepFashion's attribute prediction: one for each of 1,000 attributes, shown or not shown.

    Args:
        root: Folder of the benchmark as published: ``Anno`` or ``Anno_coarse`` with ``list_attr_cloth.txt`` and
            ``list_attr_img.txt``, ``Eval/list_eval_partition.txt``, and the images in ``img`` or ``Img/img``.
        split: ``train``, ``val``, ``test`` or ``all``.
        min_images: Attributes that fewer images show, or do not show, are left out.

    Returns:
        The tasks: class 0 does not show the attribute, class 1 does; images that are marked unknown are left out.
        Metadata: domain, attribute.

    Raises:
        ValueError: If a file is missing or damaged, or no attribute is left.

    Note:
        Few of the 289,222 images show an attribute: embed a task with ``num_samples=…, class_balanced=True``.

    Source:
        Liu et al., CVPR 2016; tasks: Achille et al., ICCV 2019, §5.
    """
    where = Path(os.path.abspath(root))
    annotations = next(
        (name for name in ("Anno", "Anno_coarse") if (where / name / "list_attr_img.txt").is_file()), "Anno"
    )
    wanted = [f"{annotations}/list_attr_cloth.txt", f"{annotations}/list_attr_img.txt"]
    partition = "Eval/list_eval_partition.txt"
    expect("deepfashion", where, [*wanted, *([] if split == "all" else [partition])], _DEEPFASHION)
    with (where / wanted[0]).open(encoding="utf-8") as lines:
        names = [line.rsplit(None, 1)[0].strip() for line in list(lines)[_HEADER:] if line.strip()]
    part = None if split == "all" else _partition(where / partition)
    files, shows, unknown = _marks(where / wanted[1], len(names), lambda file: part is None or part.get(file) == split)
    if not files:
        raise ValueError(f"deepfashion: expected split to be train, val, test or all, got {split!r}, with no images.")
    base = where if (where / "img").is_dir() else where / "Img"
    expect("deepfashion", base, [files[0]], _DEEPFASHION)
    paths = tuple(os.path.join(base, file) for file in files)
    titles = dict(enumerate(names))
    return _Attributes("deepfashion", "DeepFashion", titles, paths, files, shows, unknown).tasks(min_images)


def _partition(file: Path) -> dict[str, str]:
    with file.open(encoding="utf-8") as lines:
        return dict(line.split() for line in list(lines)[_HEADER:] if line.strip())


def _marks(
    file: Path, attributes: int, wanted: Callable[[str], bool]
) -> tuple[tuple[str, ...], dict[int, Indices], dict[int, Indices]]:
    """Read which images show what: their files, attribute -> those that show it, attribute -> unknown.

    The whole table would be 289 million numbers; few of them are not −1.
    """
    files: list[str] = []
    shows: defaultdict[int, array[int]] = defaultdict(_indices)
    unknown: defaultdict[int, array[int]] = defaultdict(_indices)
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if number <= _HEADER or not line.strip():
                continue
            name, _, rest = line.partition(" ")
            if not wanted(name):
                continue
            marks = np.array(rest.split(), dtype=np.int8)
            if len(marks) != attributes:
                raise ValueError(
                    f"deepfashion: expected {attributes} marks in line {number} of {file}, got {len(marks)}; "
                    "unpack it again."
                )
            for found, mark in ((shows, _SHOWS), (unknown, _UNKNOWN)):
                for attribute in (marks == mark).nonzero()[0].tolist():
                    found[attribute].append(len(files))
            files.append(name)
    return tuple(files), _as_arrays(shows), _as_arrays(unknown)


def _indices() -> array[int]:
    return array("i")  # 4 bytes an image; a list would take 36


def _as_arrays(found: Mapping[int, array[int]]) -> dict[int, Indices]:
    return {attribute: np.frombuffer(indices, dtype=np.int32) for attribute, indices in found.items()}
