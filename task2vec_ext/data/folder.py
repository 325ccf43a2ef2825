"""Images on disk: folders of class folders, and lists of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .images import load_image

# Formats of cameras, the web and image data sets that PIL reads without plugins.
_FORMATS = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
EXTENSIONS = frozenset("." + name for name in _FORMATS.split(" "))


@dataclass(frozen=True)
class Files:
    """Image files and their labels; an image is read when it is asked for.

    Args:
        paths: Absolute, because workers may run in another directory.
        labels: One for each path: a class, a multi-hot vector, …; None where there is none.
        names: What messages call the files.
    """

    paths: tuple[str, ...]
    labels: Sequence[Any]
    names: tuple[str, ...]

    @classmethod
    def below(cls, root: str | os.PathLike[str], names: Sequence[str], labels: Sequence[Any]) -> Files:
        """Return files given by their paths relative to a folder; `root` is absolute."""
        return cls(tuple(os.path.join(root, name) for name in names), labels, tuple(names))

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """Return the RGB image and its label."""
        return load_image(self.paths[index]), self.labels[index]

    def digest(self) -> str:
        """Return the SHA-256 of names, sizes and labels: a task's identity, without reading its images."""
        digest = hashlib.sha256()
        for path, label, name in zip(self.paths, self.labels, self.names, strict=True):
            # In full: printing a long array would leave entries out.
            written = np.asarray(label).tolist() if isinstance(label, (Tensor, np.ndarray)) else label
            try:
                size: int | None = os.path.getsize(path)
            except OSError:  # a broken link: reported, or skipped, when the image is read
                size = None
            digest.update(f"{os.fspath(name)!r} {size} {written}\n".encode())
        return digest.hexdigest()


def files_from_list(paths: Sequence[str | os.PathLike[str]], labels: Sequence[Any]) -> Files:
    """Return the files of a list, or raise if some do not exist."""
    names = tuple(os.fspath(path) for path in paths)
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise ValueError(
            f"as_task: expected every path to be a file, got {len(missing)} of {len(names)} that are not: "
            f"{_list(missing)}; correct the paths (relative ones start at {os.getcwd()})."
        )
    return Files(tuple(map(os.path.abspath, names)), tuple(labels), names)


def files_from_folder(root: Path) -> tuple[Files, tuple[str, ...]]:
    """Return the images of a folder of class folders, in the order of their paths, and the classes' names.

    The subfolders are the classes 0…C−1 in sorted order; images may lie deeper in them. Names that start with a dot,
    files that are not images by their extension, and files beside the class folders are skipped. Links are followed,
    but a class does not enter a folder twice.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise ValueError(f"as_task: expected a folder of class folders at {root}, got {got}; correct the path.")
    above = {_identity(folder) for folder in (root.resolve(), *root.resolve().parents)}  # links to these are no classes
    entries = [entry for entry in root.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    classes = tuple(sorted(entry.name for entry in entries if _identity(entry) not in above))
    if not classes:
        images = sum(is_image(name) for name in os.listdir(root))
        got = f"{images} images and no folders" if images else "no folders"
        raise ValueError(
            f"as_task: expected a folder for each class in {root}, got {got}; lay the images out as "
            f"{root.name}/cats/1.jpg, {root.name}/cats/2.jpg, {root.name}/dogs/1.jpg."
        )
    found = [list(_images(root / name, set(above))) for name in classes]
    empty = [name for name, images in zip(classes, found, strict=True) if not images]
    if empty:
        raise ValueError(
            f"as_task: expected images in every class folder of {root}, got none in {_list(empty)}; "
            f"add some or remove the folder (images end in {' '.join(sorted(EXTENSIONS))})."
        )
    names = [f"{name}/{image}" for name, images in zip(classes, found, strict=True) for image in images]
    labels = tuple(label for label, images in enumerate(found) for _ in images)
    return Files.below(os.path.abspath(root), names, labels), classes


def unlabelled_files(root: Path) -> Files:
    """Return all images below a folder, without labels; `files_from_folder` says what is skipped."""
    names = list(_images(root, set())) if root.is_dir() else []
    if not names:
        raise ValueError(f"as_task: expected a folder with images at {root}, got none; correct the path.")
    return Files.below(os.path.abspath(root), names, (None,) * len(names))


def is_image(name: str) -> bool:
    """Return whether a file is an image by its extension."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _images(folder: Path, seen: set[tuple[int, int]], prefix: str = "") -> Iterator[str]:
    """Paths of all images below the folder, relative to it; ``seen`` ends loops of links."""
    if _identity(folder) in seen:
        return
    seen.add(_identity(folder))
    # Sorted, so that of two links to one folder the same is followed everywhere.
    for name in sorted(os.listdir(folder)):
        if name.startswith("."):
            continue
        if (folder / name).is_dir():
            yield from _images(folder / name, seen, f"{prefix}{name}/")
        elif is_image(name):
            yield prefix + name


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
