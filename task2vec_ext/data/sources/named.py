"""Data sets by name: torchvision's, and those of the Hugging Face hub."""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any

from torch.utils.data import Dataset

from ..task import as_task
from .lazy import Tasks

_PARTS = ("split", "train", "version", "image_set")  # torchvision's arguments that choose images


def torchvision(name: str, **options: Any) -> Tasks:
    """Return one of torchvision's data sets as one task, named ``torchvision CIFAR10`` and its split if any.

    Args:
        name: A class of ``torchvision.datasets``: ``CIFAR10``, ``Flowers102``, ….
        **options: Its arguments: ``root``, ``split``, ``train``, ``download``, ….

    Raises:
        ValueError: If there is no such data set, or it is not in its folder.
    """
    datasets = importlib.import_module("torchvision.datasets")
    if name not in datasets.__all__:
        raise ValueError(
            f"torchvision: expected one of torchvision.datasets ({', '.join(sorted(datasets.__all__)[:5])}, …), "
            f"got {name!r}."
        )
    make = getattr(datasets, name)
    try:
        dataset = make(**options)
    except (RuntimeError, OSError, TypeError, ImportError) as error:
        download = ", &download=true downloads it" if "download" in inspect.signature(make).parameters else ""
        raise ValueError(
            f"torchvision: expected {name} with {options or 'its defaults'}, got: {error}; ?root=DIR names its "
            f"folder{download}."
        ) from error
    part = {key: options[key] for key in _PARTS if key in options}
    if "train" in part:
        part["train"] = "train" if part["train"] else "test"
    return _one(dataset, " ".join(["torchvision", name, *map(str, part.values())]), name)


def hugging_face(
    name: str, *, split: str = "train", config: str = "", revision: str = "", image: str = "", label: str = ""
) -> Tasks:
    """Return a data set of the Hugging Face hub, or one that ``save_to_disk`` wrote, as one task, ``hf NAME SPLIT``.

    Args:
        name: ``OWNER/NAME`` on the hub, or the folder that ``save_to_disk`` wrote.
        split: Such as ``train`` or ``train[:10%]``.
        config: Configuration; default: the data set's own.
        revision: Branch, tag or commit; default: the newest.
        image: Column of the images; default: the first of type ``Image``.
        label: Column of the labels; default: the first of type ``ClassLabel``.

    Raises:
        ImportError: If ``datasets`` is not installed.
        ValueError: If the data set cannot be loaded, or has no such columns.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("hf: expected the package datasets, got none; pip install 'task2vec_ext[hf]'.") from error

    try:
        if os.path.isfile(os.path.join(name, "dataset_dict.json")):
            rows = datasets.load_from_disk(name)[split]
        elif os.path.isfile(os.path.join(name, "state.json")):
            rows = datasets.load_from_disk(name)
        else:
            rows = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except Exception as error:  # whatever the network, the hub or a file format may raise
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"hf: expected the data set {name!r}, split {split!r}, got {got}") from error
    image = image or next((key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)), "")
    label = label or next((key for key, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)), "")
    if not {image, label} <= rows.features.keys():
        got = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in rows.features.items())
        raise ValueError(
            f"hf: expected a column of images and one of labels in {name!r}, got {got}; "
            "name them: ?image=COLUMN&label=COLUMN."
        )
    title = " ".join(["hf", name, *([config] if config else []), split])
    return _one(_Rows(rows.select_columns([image, label]), image, label), title, name)


def _one(dataset: Dataset[Any], name: str, domain: str) -> Tasks:
    task = as_task(dataset, name=name)
    task.metadata = {"domain": domain}
    return Tasks([name], lambda _: task)


class _Rows(Dataset[Any]):
    """Rows of a table as pairs of (image, label)."""

    def __init__(self, rows: Any, image: str, label: str) -> None:
        self.rows, self.image, self.label = rows, image, label
        self.targets = rows[label][:]  # the column alone: no image is decoded
        self.classes = getattr(rows.features[label], "names", None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.rows[int(index)]
        return row[self.image], row[self.label]
