"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that becomes ``target`` when the block ends well.

    The block writes the temporary file in any way it likes. When it ends, the file is flushed to the disk and
    renamed over ``target`` in one step; when it raises (Ctrl-C included), the temporary file is removed and
    whatever was at ``target`` before is untouched.

    Args:
        target: The file to write. Its folder must exist. A symbolic link is followed, so the link stays a
            link.

    Yields:
        A path in the same folder (a rename is only atomic inside one file system) with the same suffix.

    Raises:
        OSError: If the file could not be written (full disk, missing folder, no permission). The message names
            ``target`` and says that nothing was written; the type fits the cause, e.g. ``FileNotFoundError``.
        ValueError: If ``target`` exists and is no regular file: a rename would replace a folder or a device.
    """
    final = Path(os.path.realpath(target))
    if final.exists() and not final.is_file():
        kind = "a folder" if final.is_dir() else "not a regular file"
        raise ValueError(f"atomic_path: expected a file to write, got {target}, which is {kind}; name a file.")
    # The name does not grow with the target's: a long but legal target must not make an illegal temporary
    # name.
    temporary = final.with_name(f".task2vec-{secrets.token_hex(8)}{final.suffix}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            message = f"could not write {target}: {reason}; nothing was written"
            raise OSError(error.errno, message) if error.errno else OSError(message) from error
        raise


def _flush_to_disk(path: Path) -> None:
    """Wait until the bytes of ``path`` are on the disk: a rename may otherwise get there before them."""
    with path.open("rb+") as file:  # writable, because Windows flushes nothing else
        os.fsync(file.fileno())
