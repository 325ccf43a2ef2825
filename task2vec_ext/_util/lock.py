"""A lock on a folder that ends with the process that holds it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

_WAIT = 0.2  # seconds: to remove a leftover takes less; on NFS without locks, each file that is written waits for it


class BusyError(RuntimeError):
    """Another process holds the lock."""


@contextmanager
def locked(folder: Path, who: str, busy: str) -> Iterator[None]:
    """Keep every other process from changing a folder, or raise BusyError, which says `busy`, where one is.

    SQLite's lock on the file ``lock``: it ends with the process that holds it, however that ends, and is not handed
    down to its workers.
    """
    with ExitStack() as ending:
        try:
            db = ending.enter_context(closing(sqlite3.connect(folder / "lock", timeout=_WAIT, isolation_level=None)))
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise RuntimeError(f"{who}: expected to lock {folder}, got: {error}; see to permissions.") from error
            raise BusyError(f"{who}: {busy}") from None
        yield
