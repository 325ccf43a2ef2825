"""iMaterialist-Fashion 2018 and DeepFashion: a task for each attribute, which tells whether an image shows it."""

from __future__ import annotations

import csv
import os
import warnings
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._util.warnings import Task2VecWarning
from ..folder import Files, is_image
from ..targets import LabelSet
from ..task import Task
from .lazy import Tasks, expect, read_json, records

_IMATERIALIST = "https://github.com/visipedia/imat_fashion_comp"
_DEEPFASHION = "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/AttributePrediction.html"
_HEADER = 2  # lines before the first entry of DeepFashion's lists: their number, and the columns' names
_Found = defaultdict[int, "array[int]"]  # attribute -> images
_indices = partial(array, "i")  # 4 bytes per image; a list would take 36

_SHOWS, _UNKNOWN = 1, 0  # in list_attr_img.txt; −1: does not show


def imaterialist(
    root: str | os.PathLike[str], *, split: str = "train", min_images: int = 1, multilabel: bool = False
) -> Tasks:
    """Return the tasks of iMaterialist-Fashion 2018: for each of 228 attributes, whether an image shows it.

    Class 1 shows the attribute, class 0 does not. Each task has all images that are on disk; a warning gives the number
    of those that are not. Metadata: domain, attribute.

    Args:
        root: Folder with ``train.json``, the images as ``train/IMAGE_ID.jpg`` (published as links), and the label map
            as CSV (``*label*.csv`` with columns ``labelId``, ``labelName``, ``taskName``). Without the label map,
            attributes are called by their numbers.
        split: ``train`` or ``validation``.
        min_images: Attributes that fewer images show, or fewer do not show, are left out.
        multilabel: Whether to return one task with all attributes, for ``loss="multilabel"``.

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
    listed = _annotations(where / f"{split}.json")
    # One look at the folder is faster than a million at files.
    on_disk = {os.path.splitext(name)[0]: name for name in os.listdir(where / split) if is_image(name)}
    present = [image for image in listed if image in on_disk]
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
    found = _Found(_indices)
    for index, image in enumerate(present):
        for label in set(listed[image]):
            found[label].append(index)
    names = {label: str(label) for label in found} | _label_names(where)
    images = Files.below(where, [f"{split}/{on_disk[image]}" for image in present], ())
    attributes = _Attributes("imat2018", "iMaterialist-Fashion 2018", names, images, found, {})
    return attributes.as_one(min_images) if multilabel else attributes.tasks(min_images)


def _annotations(file: Path) -> dict[str, list[int]]:
    """Return image -> its labels, under the keys of the published files or of their description."""
    content = read_json("imat2018", file)
    entries = content.get("annotations") if isinstance(content, dict) else None
    published = isinstance(entries, list) and entries and isinstance(entries[0], dict) and "imageId" in entries[0]
    keys = ("imageId", "labelId") if published else ("image_id", "label_id")
    listed: dict[str, list[int]] = {}
    for image, labels in records("imat2018", file, "annotations", entries, *keys):
        try:
            listed[str(image)] = [int(label) for label in labels]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"imat2018: expected lists of numbers as labels in {file}, got {labels!r:.60} of image {image}; "
                "download or unpack it again."
            ) from error
    return listed


def _label_names(root: Path) -> dict[int, str]:
    """Return the attributes' names, such as ``color Beige``: a category and a colour may share a name."""
    file = next(iter(sorted(root.glob("*label*.csv"))), None)
    if file is None:
        return {}
    with file.open(encoding="utf-8-sig", newline="") as lines:
        try:
            return {int(row["labelId"]): f"{row['taskName']} {row['labelName']}" for row in csv.DictReader(lines)}
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"imat2018: expected the columns labelId (a number), labelName and taskName in {file}, got: {error}; "
                "correct the label map, or rename it."
            ) from error


def deepfashion(root: str | os.PathLike[str], *, split: str = "all", min_images: int = 1) -> Tasks:
    """Return the tasks of DeepFashion's attribute prediction: for each of 1,000 attributes, whether an image shows it.

    Class 1 shows the attribute, class 0 does not; images marked unknown are left out. Metadata: domain, attribute.

    Args:
        root: Folder of the benchmark as published: ``Anno`` or ``Anno_coarse`` with ``list_attr_cloth.txt`` and
            ``list_attr_img.txt``, ``Eval/list_eval_partition.txt``, and the images in ``img`` or ``Img/img``.
        split: ``train``, ``val``, ``test`` or ``all``.
        min_images: Attributes that fewer images show, or fewer do not show, are left out.

    Raises:
        ValueError: If a file is missing or damaged, or no attribute is left.

    Note:
        Few of the 289,222 images show an attribute: embed a task with ``num_samples=…, class_balanced=True``.

    Source:
        Liu et al., CVPR 2016; tasks: Achille et al., ICCV 2019, §5.
    """
    where = Path(os.path.abspath(root))
    folder = next((name for name in ("Anno", "Anno_coarse") if (where / name / "list_attr_img.txt").is_file()), "Anno")
    listed, images = f"{folder}/list_attr_cloth.txt", f"{folder}/list_attr_img.txt"
    partition = [] if split == "all" else ["Eval/list_eval_partition.txt"]
    expect("deepfashion", where, [listed, images, *partition], _DEEPFASHION)
    names = [line.rsplit(None, 1)[0].strip() for line in _entries(where / listed)]
    part = {words[0]: words[-1] for file in partition for line in _entries(where / file) if (words := line.split())}
    chosen = None if split == "all" else {image for image, name in part.items() if name == split}
    files, shows, unknown = _marks(where / images, len(names), chosen)
    if not files:
        raise ValueError(f"deepfashion: expected split to be train, val, test or all, got {split!r}, with no images.")
    base = where if (where / "img").is_dir() else where / "Img"
    expect("deepfashion", base, [files[0]], _DEEPFASHION)
    found, titles = Files.below(base, files, ()), dict(enumerate(names))
    return _Attributes("deepfashion", "DeepFashion", titles, found, shows, unknown).tasks(min_images)


def _entries(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").split("\n")[_HEADER:] if line.strip()]


def _marks(file: Path, attributes: int, chosen: set[str] | None) -> tuple[list[str], _Found, _Found]:
    """Read the chosen images' files, attribute -> images that show it, and attribute -> images marked unknown.

    Line by line: of the table's 289 million marks, few are not −1.
    """
    files: list[str] = []
    shows, unknown = _Found(_indices), _Found(_indices)
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            name, _, rest = line.partition(" ")
            if number <= _HEADER or not line.strip() or (chosen is not None and name not in chosen):
                continue
            try:
                marks = np.array(rest.split(), dtype=np.int8)
            except (ValueError, OverflowError):
                marks = np.empty(0, dtype=np.int8)
            if len(marks) != attributes:
                got = f"{len(rest.split())}: {rest.strip()[:40]}"
                raise ValueError(
                    f"deepfashion: expected {attributes} marks −1, 0 or 1 in line {number} of {file}, got {got}; "
                    "unpack it again."
                )
            for found, mark in ((shows, _SHOWS), (unknown, _UNKNOWN)):
                for attribute in (marks == mark).nonzero()[0].tolist():
                    found[attribute].append(len(files))
            files.append(name)
    return files, shows, unknown


@dataclass(frozen=True)
class _Attributes:
    """Images, and which of them show which attribute."""

    who: str
    domain: str
    names: Mapping[int, str]
    images: Files  # without labels
    shows: Mapping[int, array[int]]  # attribute -> the images that show it
    unknown: Mapping[int, array[int]]  # attribute -> the images that may or may not

    def tasks(self, min_images: int) -> Tasks:
        """Return one task for each attribute that enough images show, and enough do not."""
        kept = self._kept(min_images)
        return Tasks([f"{self.who} {self.names[attribute]}" for attribute in kept], lambda i: self._task(kept[i]))

    def as_one(self, min_images: int) -> Tasks:
        """Return one task of the same attributes, any number of them per image."""
        kept = self._kept(min_images)
        labels = _MultiHot([self.shows[attribute] for attribute in kept], len(self.images))
        task = Task(
            Files(self.images.paths, labels, self.images.names),
            name=self.who,
            classes=tuple(self.names[attribute] for attribute in kept),
            target=LabelSet(),
            metadata={"domain": self.domain},
        )
        return Tasks([task.name], lambda _: task)

    def _kept(self, min_images: int) -> list[int]:
        few, images = max(1, min_images), len(self.images)
        kept = [
            attribute
            for attribute in sorted(self.names)
            if few <= len(self.shows.get(attribute, ())) <= images - len(self.unknown.get(attribute, ())) - few
        ]
        if not kept:
            raise ValueError(
                f"{self.who}: expected an attribute that {few} or more of the {images} images show and {few} or more "
                "do not, got none; lower min_images, or check the images' folder."
            )
        return kept

    def _task(self, attribute: int) -> Task:
        labels = np.zeros(len(self.images), dtype=np.int64)
        labels[self.shows[attribute]] = 1
        paths, names = self.images.paths, self.images.names
        if len(self.unknown.get(attribute, ())):
            known = np.setdiff1d(np.arange(len(labels)), self.unknown[attribute])
            labels, paths, names = labels[known], tuple(paths[i] for i in known), tuple(names[i] for i in known)
        title = self.names[attribute]
        return Task(
            Files(paths, tuple(labels.tolist()), names),
            name=f"{self.who} {title}",
            classes=(f"not {title}", title),
            labels=torch.from_numpy(labels),
            metadata={"domain": self.domain, "attribute": title},
        )


class _MultiHot(Sequence[Tensor]):
    """Which attributes each image shows, float32 ``[C]`` when asked for: for a million images they would take 1 GB."""

    def __init__(self, shows: Sequence[array[int]], images: int) -> None:
        """Turn the images of each attribute into the attributes of each image."""
        columns = np.repeat(np.arange(len(shows), dtype=np.int32), [len(found) for found in shows])
        rows = np.concatenate(shows)
        self._columns = columns[rows.argsort(kind="stable")]  # the attributes of the first image, of the second, …
        self._starts = np.concatenate([[0], np.bincount(rows, minlength=images).cumsum()])
        self._num_classes = len(shows)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> Any:
        hot = torch.zeros(self._num_classes)
        hot[self._columns[self._starts[index] : self._starts[index + 1]].tolist()] = 1
        return hot
