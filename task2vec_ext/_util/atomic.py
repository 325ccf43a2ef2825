"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that becomes ``target`` when the block ends without an exception.

    At the end the file is flushed to the disk and renamed over ``target`` in one step. When the block raises (Ctrl-C
    included), the temporary file is removed and an older ``target`` is untouched. A symbolic link stays a link.

    Raises:
        OSError: If the file could not be written; the type fits the cause, e.g. ``FileNotFoundError``.
        ValueError: If ``target`` exists and is not a regular file: a rename would replace a folder or a device.
    """
    final = Path(os.path.realpath(os.path.expanduser(target)))
    if final.exists() and not final.is_file():
        kind = "a folder" if final.is_dir() else "not a regular file"
        raise ValueError(f"atomic_path: expected a file to write, got {target}, which is {kind}; name a file.")
    # Beside it, because a rename is atomic only within a file system; of fixed length, so that a long but legal target
    # does not make an illegal temporary name.
    temporary = final.with_name(f".task2vec-{secrets.token_hex(8)}{final.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # writable, because Windows flushes nothing else
            os.fsync(file.fileno())  # the rename may otherwise be on the disk before the bytes
        os.replace(temporary, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            message = f"could not write {target}: {reason}; nothing was written"
            raise OSError(error.errno, message) if error.errno else OSError(message) from error
        raise


def check_writable(who: str, folder: Path) -> None:
    """Make the folder if it does not exist, and raise OSError if it cannot be written to, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OSError(f"{who}: cannot write into {folder} ({error.strerror}); choose another.") from error
