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

# What cameras, the web and image data sets use, and PIL reads without plugins.
_FORMATS = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
EXTENSIONS = frozenset("." + name for name in _FORMATS.split(" "))

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Files:
    """Labelled image files, read when asked for.

    Args:
        paths: Absolute paths: workers may run elsewhere.
        labels: One for each path: class, multi-hot vector, …; None where there is none.
        names: What messages call the files.
    """

    paths: tuple[str, ...]
    labels: Sequence[Any]
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """Return the RGB image and its label."""
        return load_image(self.paths[index]), self.labels[index]

    def digest(self) -> str:
        """Return a SHA-256 of names, sizes and labels: another one means another task."""
        digest = hashlib.sha256()
        for path, label, name in zip(self.paths, self.labels, self.names, strict=True):
            digest.update(f"{os.fspath(name)!r} {_size(path)} {_written(label)}\n".encode())
        return digest.hexdigest()


def _size(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except OSError:  # a broken link: the image is skipped or named when it is read, not here
        return None


def files_from_list(paths: Sequence[str | os.PathLike[str]], labels: Sequence[Any]) -> Files:
    """Return the files of a list, all of which exist.

    Args:
        paths: Their paths.
        labels: One for each path.

    Returns:
        The files.

    Raises:
        ValueError: If some are missing; names the first few.
    """
    names = tuple(os.fspath(path) for path in paths)
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise ValueError(
            f"as_task: expected every path to be a file, got {len(missing)} of {len(names)} that are not: "
            f"{_list(missing)}; correct the paths (relative ones start at {os.getcwd()})."
        )
    return Files(tuple(map(os.path.abspath, names)), tuple(labels), names)


def files_from_folder(root: Path) -> tuple[Files, tuple[str, ...]]:
    """Return the images of a folder of class folders, and the classes' names.

    Args:
        root: The folder. Its subfolders are the classes 0…C−1 in sorted order; images may lie deeper in
            them. Names that start with a dot are skipped, and so are files that are not images by their
            extension and whatever lies beside the class folders. Links are followed, but a class does not
            enter a folder twice.

    Returns:
        The files in the order of their paths, and C names.

    Raises:
        ValueError: If it is not a folder, has no class folders, or a class folder has no images.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise ValueError(f"as_task: expected a folder of class folders at {root}, got {got}; correct the path.")
    # A link back to the root or above it is no class of its own.
    above = {_identity(folder) for folder in (root.resolve(), *root.resolve().parents)}
    classes = tuple(
        sorted(
            entry.name
            for entry in root.iterdir()
            if not entry.name.startswith(".") and entry.is_dir() and _identity(entry) not in above
        )
    )
    if not classes:
        raise ValueError(_expected_layout(root))
    found = [list(_images(root / name, set(above))) for name in classes]
    empty = [name for name, images in zip(classes, found, strict=True) if not images]
    if empty:
        raise ValueError(
            f"as_task: expected images in every class folder of {root}, got none in {_list(empty)}; "
            f"add some or remove the folder (images end in {' '.join(sorted(EXTENSIONS))})."
        )
    names = tuple(f"{name}/{image}" for name, images in zip(classes, found, strict=True) for image in images)
    labels = tuple(label for label, images in enumerate(found) for _ in images)
    return Files(tuple(os.path.abspath(root / name) for name in names), labels, names), classes


def unlabelled_files(root: Path) -> Files:
    """Return all images below a folder, without labels.

    Args:
        root: The folder; see `files_from_folder` for what is skipped.

    Returns:
        The files in the order of their paths.

    Raises:
        ValueError: If it is not a folder, or holds no images.
    """
    names = tuple(_images(root, set())) if root.is_dir() else ()
    if not names:
        raise ValueError(f"as_task: expected a folder with images at {root}, got none; correct the path.")
    return Files(tuple(os.path.abspath(root / name) for name in names), (None,) * len(names), names)


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
        elif os.path.splitext(name)[1].lower() in EXTENSIONS:
            yield prefix + name


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _expected_layout(root: Path) -> str:
    images = [name for name in sorted(os.listdir(root)) if os.path.splitext(name)[1].lower() in EXTENSIONS]
    got = f"{len(images)} images and no folders" if images else "no folders"
    return (
        f"as_task: expected a folder for each class in {root}, got {got}; lay the images out as "
        f"{root.name}/cats/1.jpg, {root.name}/cats/2.jpg, {root.name}/dogs/1.jpg."
    )


def _written(label: Any) -> str:
    """A label in full: what prints of a long array leaves entries out."""
    return str(np.asarray(label).tolist() if isinstance(label, (Tensor, np.ndarray)) else label)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
