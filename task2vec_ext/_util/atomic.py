"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .lock import locked

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_OLD = 24 * 3600  # seconds: no file takes a day to write


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path that becomes ``target`` when the block ends without an exception.

    At the end the file is flushed to the disk and renamed over ``target`` in one step. When the block raises (Ctrl-C
    included), the temporary file is removed and an older ``target`` is untouched. A symbolic link stays a link. What a
    killed process left is removed by the next one that writes into the folder (`remove_leftovers`).

    Args:
        target: The file.
        durable: Flush it. Without, a machine that loses power may leave a file with other bytes.

    Raises:
        OSError: If the file could not be written; the type fits the cause, e.g. ``FileNotFoundError``.
        ValueError: If ``target`` exists and is not a regular file: a rename would replace a folder or a device.
    """
    final = Path(os.path.realpath(os.path.expanduser(target)))
    if final.exists() and not final.is_file():
        kind = "a folder" if final.is_dir() else "not a regular file"
        raise ValueError(f"atomic_path: expected a file to write, got {target}, which is {kind}; name a file.")
    try:
        _remove_leftovers_once(final.parent)
        with _place_beside(final) as place:
            temporary = place / f"new{final.suffix}"
            yield temporary
            if durable:
                with temporary.open("rb+") as file:  # writable, because Windows flushes nothing else
                    os.fsync(file.fileno())  # the rename may otherwise be on the disk before the bytes
            os.replace(temporary, final)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"could not write {target}: {reason}; nothing was written"
        raise OSError(error.errno, message) if error.errno else OSError(message) from error


@contextlib.contextmanager
def _place_beside(final: Path) -> Iterator[Path]:
    """Yield a new folder beside a file, locked: whoever finds it can tell that its process lives."""
    # Beside it, because a rename is atomic only within a file system; of fixed length, so that a long but legal target
    # does not make an illegal temporary name.
    with contextlib.ExitStack() as ending:
        while True:
            place = final.with_name(f".task2vec-{secrets.token_hex(8)}")
            place.mkdir()
            ending.callback(shutil.rmtree, place, ignore_errors=True)
            with contextlib.suppress(RuntimeError):  # a file system without locks, where nobody removes it either
                ending.enter_context(locked(place, "atomic_path", "being removed"))
            if place.exists():  # else removed before it was locked
                break
        yield place


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while they wrote files left in a folder, and nothing of a living one."""
    for found in folder.glob(".task2vec-*"):
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: in use, or a file system without locks
            if time.time() - found.stat().st_mtime > _OLD:
                shutil.rmtree(found) if found.is_dir() else found.unlink()  # version 0.2 had files
            elif found.is_dir():
                with locked(found, "remove_leftovers", "being written"):
                    shutil.rmtree(found)


_remove_leftovers_once = functools.cache(remove_leftovers)  # a large folder takes long to list


def check_writable(who: str, folder: Path) -> None:
    """Make the folder if it does not exist, and raise OSError if it cannot be written to, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OSError(f"{who}: cannot write into {folder} ({error.strerror}); choose another.") from error
