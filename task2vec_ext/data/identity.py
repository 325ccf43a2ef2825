"""What tells whether a task's images are those that an earlier result was made from.

The digest of files has four parts, joined by ``-``:

1. a SHA-256 of names, sizes and labels, which is the whole digest of versions before 0.3;
2. one of names and labels alone;
3. one of the files' times;
4. one of their contents, where reading them is cheap, else nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from .folder import Files

Change = Literal["same", "replaced", "other"]
"""The images are the same; they are others under the same names and labels; names or labels are others."""

MAX_FILES, MAX_BYTES = 20_000, 1 << 30
"""Contents are hashed up to here: one or two seconds. Beyond, the files' times decide."""


class _Look(NamedTuple):
    """What one look at every file tells, without reading it."""

    listing: str
    names: str
    times: str
    cheap: bool


def file_key(path: str, what: str) -> bytes | None:
    """Return 16 bytes that stand for a file as it is now (path, size, times) and for what is made of it.

    None where there is no regular file; that is told when it is read.
    """
    try:
        state = os.stat(path)
    except OSError:
        return None
    if not S_ISREG(state.st_mode):
        return None
    # A copy may keep the time of its content, never that of its inode.
    known = f"\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ctime_ns}\0{what}"
    return hashlib.blake2b(os.fsencode(path) + known.encode(), digest_size=16).digest()


def digest_of_files(files: Files) -> str:
    """Return the digest of files; it depends on their times only where contents are not read."""
    look = _look(files)
    parts = (look.listing, look.names, "", _contents(files.paths)) if look.cheap else (*look[:3], "")
    return "-".join(parts)


def record_of_files(files: Files) -> str:
    """Return the digest of files with their times, which spare `change_of_files` the reading."""
    look = _look(files)
    return "-".join((*look[:3], _contents(files.paths) if look.cheap else ""))


def digest_of_record(record: str | None) -> str | None:
    """Return the digest that a record contains."""
    if record is None or record.count("-") != 3 or record.endswith("-"):
        return record
    listing, names, _, contents = record.split("-")
    return "-".join((listing, names, "", contents))


def change_of_files(files: Files, record: str) -> Change:
    """Return what became of files since a digest or a record of them; old digests know neither times nor contents."""
    listing, names, times, contents = [*record.split("-"), "", "", ""][:4]
    look = _look(files)
    if not names:
        return "same" if listing == look.listing else "other"
    if names != look.names:
        return "other"
    if listing == look.listing and (
        times == look.times or (contents and look.cheap and contents == _contents(files.paths))
    ):
        return "same"
    return "replaced"


def same_digest(known: str | None, now: str | None) -> bool:
    """Return whether two digests are of the same images; one of a version before 0.3 is the first part of ours."""
    return known == now or (known is not None and now is not None and "-" not in known and now.startswith(f"{known}-"))


def digest_of_memory(items: Sequence[tuple[Any, Any]]) -> str | None:
    """Return the SHA-256 of images (PIL, tensor, array) and labels in memory, None where they are too large."""
    digest, read = hashlib.sha256(), 0
    for image, label in items:
        if isinstance(image, Image.Image):
            size = image.width * image.height * len(image.getbands())
        else:
            size = getattr(image, "nbytes", MAX_BYTES)
        if (read := read + size) > MAX_BYTES:
            return None
        array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
        digest.update(f"{array.dtype}{array.shape} {_written(label)}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _look(files: Files) -> _Look:
    listing, names, times = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    stats = [_stat(path) for path in files.paths]
    cheap = len(stats) <= MAX_FILES and sum(stat.st_size for stat in stats if stat) <= MAX_BYTES
    if files.max_value is not None:
        for digest in (listing, names):
            digest.update(f"max_value {files.max_value:.17g}\n".encode())
    for stat, label, name in zip(stats, files.labels, files.names, strict=True):
        size, written = None if stat is None else stat.st_size, _written(label)
        listing.update(f"{os.fspath(name)!r} {size} {written}\n".encode())
        names.update(f"{os.fspath(name)!r} {written}\n".encode())
        # A copy may keep its modification time, never the time of its inode; where that is all there is, it may not
        # depend on who moved the files.
        changed = () if stat is None else (stat.st_mtime_ns, stat.st_ctime_ns)[: 2 if cheap else 1]
        times.update(f"{changed}\n".encode())
    return _Look(listing.hexdigest(), names.hexdigest()[:16], times.hexdigest()[:16], cheap)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:  # a broken link: reported, or skipped, when the image is read
        return None


def _contents(paths: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = Path(path).read_bytes() if os.path.isfile(path) else b""  # a pipe would wait for ever
        except OSError:
            content = b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]


def _written(label: Any) -> Any:
    """A label in full: printing a long array would leave entries out."""
    return np.asarray(label).tolist() if isinstance(label, (Tensor, np.ndarray)) else label
