"""Data sets by name: torchvision's, and those of the Hugging Face hub."""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any

from torch.utils.data import Dataset

from ..columns import Rows, image_and_label
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
    name: str, *, split: str = "", config: str = "", revision: str = "", image: str = "", label: str = ""
) -> Tasks:
    """Return a data set of the Hugging Face hub, or one that ``save_to_disk`` wrote, as one task, ``hf NAME SPLIT``.

    Args:
        name: ``OWNER/NAME`` on the hub, or the folder that ``save_to_disk`` wrote.
        split: Such as ``test`` or, on the hub, ``train[:10%]``. Default: ``train``, or what was saved without splits.
        config: Configuration, on the hub; default: the data set's own.
        revision: Branch, tag or commit, on the hub; default: the newest.
        image: Column of the images; default: the one of type ``Image``.
        label: Column of the labels, numbers or text; default: the one of type ``ClassLabel`` or with such a name.

    Raises:
        ImportError: If ``datasets`` is not installed.
        ValueError: If the data set cannot be loaded, has no such columns, or options do not apply to it.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("hf: expected the package datasets, got none; pip install 'task2vec_ext[hf]'.") from error

    saved = any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json"))
    if saved and (config or revision):
        what = "config" if config else "revision"
        raise ValueError(f"hf: expected no {what} for {name!r}, which save_to_disk wrote, got one; leave it out.")
    try:
        if saved:
            rows = datasets.load_from_disk(name)
        else:
            split = split or "train"
            rows = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except Exception as error:  # whatever the network, the hub or a file format may raise
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"hf: expected the data set {name!r}, split {split or 'train'!r}, got {got}") from error
    if saved:
        rows, split = _split_of_saved(name, rows, split)
    image, label = image_and_label(rows.features, image, label)
    if not {image, label} <= rows.features.keys():
        got = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in rows.features.items())
        raise ValueError(
            f"hf: expected a column of images and one of labels in {name!r}, got {got}; "
            "name them: ?image=COLUMN&label=COLUMN."
        )
    title = " ".join(filter(None, ["hf", name, config, split]))
    return _one(Rows(rows, image, label), title, name)


def _split_of_saved(name: str, rows: Any, split: str) -> tuple[Any, str]:
    """The rows that are meant of what save_to_disk wrote, and their split's name."""
    if isinstance(rows, dict):
        split = split or "train"
        if split not in rows:
            raise ValueError(f"hf: expected a split of {name!r} ({', '.join(rows)}), got {split!r}; name one of them.")
        return rows[split], split
    own = str(rows.split or "")
    if split not in ("", own):
        of = f" of the split {own!r}" if own else " without splits"
        raise ValueError(
            f"hf: expected no split for {name!r}, which was saved as one data set{of}, got {split!r}; leave it out."
        )
    return rows, own


def _one(dataset: Dataset[Any], name: str, domain: str) -> Tasks:
    task = as_task(dataset, name=name)
    task.metadata = {"domain": domain}
    return Tasks([name], lambda _: task)
