"""Images on disk: folders of class folders, and lists of files."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .._util.warnings import Task2VecWarning
from .._util.words import counted
from .identity import digest_of_files
from .images import load_image
from .labels import tidy

# Formats of cameras, the web and image data sets that PIL reads without plugins.
_FORMATS = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
EXTENSIONS = frozenset("." + name for name in _FORMATS.split(" "))

# Files that lie beside images and hold none: nobody misses them. All others that are left out are reported.
_COMPANIONS = (
    "txt md rst json jsonl xml csv tsv yaml yml toml html htm css js pdf log ini db bib py ipynb sh bat xmp aae"
)
_COMPANIONS += " url lnk md5 sha1 sha256 crc"
_COMPANION_ENDINGS = frozenset("." + name for name in _COMPANIONS.split(" "))
_COMPANION_NAMES = frozenset(
    {"license", "licence", "readme", "copying", "changelog", "manifest", "md5sums", "sha256sums"}
)

# Folders of thumbnails, of deleted files and of notes, made by network drives, archives and systems.
_JUNK = frozenset(
    {
        *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "lost+found"),
        *("__macosx", "__pycache__", "system volume information", "recycler", "cvs"),
    }
)

_SPLIT = re.compile(
    r"(train|training|trainval|val|valid|validation|dev|devel|test|testing|eval|evaluation|holdout|unlabell?ed|extra)"
    r"([ _.-]*(set|sets|data|dataset|split|images|imgs|\d+))*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Files:
    """Image files and their labels; an image is read when it is asked for.

    Args:
        paths: Absolute, because workers may run in another directory.
        labels: One for each path: a class, a multi-hot vector, …; None where there is none.
        names: What messages call the files.
        max_value: The pixel value of white, see `to_rgb`.
    """

    paths: tuple[str, ...]
    labels: Sequence[Any]
    names: tuple[str, ...]
    max_value: float | None = None

    @classmethod
    def below(cls, root: str | os.PathLike[str], names: Sequence[str], labels: Sequence[Any]) -> Files:
        """Return files given by their paths relative to a folder; `root` is absolute."""
        return cls(tuple(on_disk(os.path.join(root, name)) for name in names), labels, tuple(names))

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """Return the RGB image and its label."""
        return self.image(index), self.labels[index]

    def image(self, index: int, *, at_least: int | None = None) -> Tensor:
        """Return the RGB image; arguments as `load_image`'s."""
        return load_image(self.paths[index], max_value=self.max_value, at_least=at_least)

    def file_name(self, index: int) -> str:
        """Return what messages call a file."""
        return self.names[index]

    def digest(self) -> str:
        """Return what tells these files and labels from others; see `task2vec_ext.data.identity`."""
        return digest_of_files(self)


def files_from_list(paths: Sequence[str | os.PathLike[str]], labels: Sequence[Any]) -> Files:
    """Return the files of a list, or raise if some do not exist."""
    names = tuple(os.fspath(path) for path in paths)
    found = tuple(on_disk(os.path.abspath(name)) for name in names)
    missing = [name for name, path in zip(names, found, strict=True) if not os.path.isfile(path)]
    if missing:
        raise ValueError(
            f"as_task: expected every path to be a file, got {len(missing)} of {len(names)} that are not: "
            f"{_list(missing)}; correct the paths (relative ones start at {os.getcwd()})."
        )
    return Files(found, tuple(labels), names)


def files_from_folder(root: Path) -> tuple[Files, tuple[str, ...]]:
    """Return the images of a folder of class folders, in the order of their paths, and the classes' names.

    The subfolders with images are the classes 0…C−1 in sorted order; images may lie deeper in them. Names that start
    with a dot and folders such as ``@eaDir`` are skipped. A warning counts what else is left out. Links are followed,
    but a class does not enter a folder twice.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise ValueError(f"as_task: expected a folder of class folders at {root}, got {got}; correct the path.")
    above = {_identity(folder) for folder in (root.resolve(), *root.resolve().parents)}  # links to these are no classes
    entries = sorted(entry for entry in root.iterdir() if not is_junk(entry.name))
    folders = [entry.name for entry in entries if entry.is_dir() and _identity(entry) not in above]
    beside = [entry.name for entry in entries if not entry.is_dir() and is_image(entry.name)]
    if not folders:
        got = f"{counted(len(beside), 'image')} and no folders" if beside else "no folders"
        raise ValueError(
            f"as_task: expected a folder for each class in {root}, got {got}; lay the images out as "
            f"{root.name}/cats/1.jpg, {root.name}/cats/2.jpg, {root.name}/dogs/1.jpg."
        )
    others: Others = defaultdict(Counter)
    found = {name: list(_images(root / name, set(above), others[name])) for name in folders}
    empty = [name for name, images in found.items() if not images]
    foreign = [f"{name} ({_counts(others[name])})" for name in empty if others[name]]
    if foreign or len(empty) == len(found):
        raise ValueError(
            f"as_task: expected images in every class folder of {root}, got none in {_list(foreign or empty)}; rename "
            f"or convert the files, or remove the folder (images end in {' '.join(sorted(EXTENSIONS))})."
        )
    classes = tuple(name for name in folders if found[name])
    check_no_splits(classes, f"as_task: expected a folder for each class in {root}", f"{root}/{classes[0]}")
    check_no_twins("as_task", classes, f"class folders of {root}")
    _report(
        root,
        others,
        [f"{len(beside)} image{'s' * (len(beside) > 1)} beside the class folders ({_list(beside)})"] * bool(beside)
        + [f"folders without images ({_list(empty)})"] * bool(empty),
    )
    names = [f"{name}/{image}" for name in classes for image in found[name]]
    labels = tuple(label for label, name in enumerate(classes) for _ in found[name])
    return Files.below(os.path.abspath(root), names, labels), classes


def unlabelled_files(root: Path) -> Files:
    """Return all images below a folder, without labels; `files_from_folder` says what is skipped."""
    others: Others = defaultdict(Counter)
    names = list(_images(root, set(), others[""])) if root.is_dir() else []
    if not names:
        got = f"none ({_counts(others[''])})" if others[""] else "none"
        raise ValueError(f"as_task: expected a folder with images at {root}, got {got}; correct the path.")
    _report(root, others)
    return Files.below(os.path.abspath(root), names, (None,) * len(names))


def is_image(name: str) -> bool:
    """Return whether a file is an image by its extension."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that systems leave behind."""
    return name.startswith(".") or name.lower() in _JUNK


def check_no_splits(classes: Sequence[str], expected: str, example: str) -> None:
    """Raise if what should be classes are the splits of a data set; classes may be called ``train`` among others."""
    ends = min(classes), max(classes)  # what these two share, all share
    shared = next((ends[0][:i] for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), "")
    shared = shared[: max(shared.rfind(mark) for mark in " _-.") + 1]
    splits = [name for name in classes if _SPLIT.fullmatch(name[len(shared) :])]
    if splits and (len(splits) == len(classes) or (len(splits) > 1 and 2 * len(splits) >= len(classes))):
        raise ValueError(
            f"{expected}, got splits of a data set: {_list(splits)}; name one of them ({example}), or join them "
            "(task2vec_ext.data.union)."
        )


def check_no_twins(who: str, names: Sequence[str], what: str) -> None:
    """Raise if two names look alike: the same letters in two forms of Unicode."""
    forms: dict[str, str] = {}
    for name in names:
        if (twin := forms.setdefault(tidy(name), name)) != name:
            raise ValueError(
                f"{who}: expected {what} of different names, got {twin!a} and {name!a}, which look the same; "
                "rename one, or move its images to the other."
            )


Others = defaultdict[str, "Counter[str]"]
"""Class -> ending -> number of files that may be images, but are none by their ending."""


def _report(root: Path, others: Others, notes: Sequence[str] = ()) -> None:
    """Warn of what is left out of a task."""
    total = sum(others.values(), Counter[str]())
    if total:
        notes = [f"{_counts(total)} (rename or convert them; images end in {' '.join(sorted(EXTENSIONS))})", *notes]
    if notes:
        warnings.warn(f"as_task: of {root}, left out {'; '.join(notes)}", Task2VecWarning, stacklevel=4)


def _counts(others: Counter[str]) -> str:
    """Such as ``3 files .jpg_large, 1 file without ending``."""
    counts = [
        f"{count} file{'s' * (count > 1)} {ending or 'without ending'}" for ending, count in others.most_common(5)
    ]
    return ", ".join(counts) + (", …" if len(others) > 5 else "")


def _images(folder: Path, seen: set[tuple[int, int]], others: Counter[str], prefix: str = "") -> Iterator[str]:
    """Paths of all images below the folder, relative to it; ``seen`` ends loops of links."""
    if _identity(folder) in seen:
        return
    seen.add(_identity(folder))
    # Sorted, so that of two links to one folder the same is followed everywhere.
    for name in sorted(os.listdir(folder)):
        if is_junk(name):
            continue
        if (folder / name).is_dir():
            yield from _images(folder / name, seen, others, f"{prefix}{name}/")
        elif is_image(name):
            yield prefix + name
        else:
            stem, ending = os.path.splitext(name.lower())
            known = ending in _COMPANION_ENDINGS or (not ending and stem in _COMPANION_NAMES)
            if not known and (folder / name).is_file():
                others[ending] += 1


def on_disk(path: str) -> str:
    """Return a path in the form of Unicode in which it exists; tables and file systems may differ in it."""
    if path.isascii() or os.path.lexists(path):
        return path
    forms = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
    return next(filter(os.path.lexists, forms), path)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
