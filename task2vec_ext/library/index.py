"""The index of a library: its tasks, the state of each, and the settings of all embeddings.

SQLite rather than Parquet: the row of a task is on the disk before the next task begins and survives a kill, where a
Parquet file is only written as a whole. And SQLite comes with Python.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .._util.lock import BusyError, locked
from .._util.names import file_name
from ..settings import JSON

State = Literal["waiting", "done", "failed"]

FORMAT_VERSION = 2
"""Of the index and the folder's layout; embeddings have their own. Format 1 differs in the settings' record."""

_COLUMNS = {  # the fields of Entry
    # Never reused: it is the task's row in the matrix and its number in the shortlist.
    "id": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "name": "TEXT NOT NULL UNIQUE",
    "file": "TEXT NOT NULL UNIQUE",
    "pictures": "INTEGER NOT NULL",  # Entry.images: version 0.1 named the column
    "state": "TEXT NOT NULL",
    "digest": "TEXT",
    "sha256": "TEXT",
    "num_samples": "INTEGER",
    "num_skipped": "INTEGER",
    "num_outputs": "INTEGER",
    "score": "REAL",
    "norm": "REAL",
    "seconds": "REAL",
    "error": "TEXT",
}
# Text is passed as bytes: file names need not be valid UTF-8.
_VALUES = {name: "CAST(? AS TEXT)" if kind.startswith("TEXT") else "?" for name, kind in _COLUMNS.items()}


@dataclass(frozen=True)
class Entry:
    """What a library knows of one task.

    Args:
        id: Its number, from 1; never given to another task.
        name: What people call it.
        file: Its embedding, in the library's folder ``embeddings``.
        images: How many it has.
        state: ``"waiting"`` to be embedded, ``"done"`` or ``"failed"``.
        digest: `Task.record` of the images that were embedded.
        sha256: Of the file.
        num_samples: Images that the Fisher is the mean over.
        num_skipped: Images that could not be read.
        num_outputs: C.
        score: Of the head, in [0, 1].
        norm: ‖F‖₁, nats² per weight².
        seconds: How long embedding it took.
        error: Why it failed.
    """

    id: int
    name: str
    file: str
    images: int
    state: State
    digest: str | None = None
    sha256: str | None = None
    num_samples: int | None = None
    num_skipped: int | None = None
    num_outputs: int | None = None
    score: float | None = None
    norm: float | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Index:
    """The table of a library's tasks, opened for each transaction, so that forked processes share no connection."""

    path: Path

    def create(self, settings: dict[str, JSON]) -> None:
        """Make an empty index, also of an old one; `settings` is what all embeddings are made with."""
        columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        with self._transaction() as db:
            db.execute("DROP TABLE IF EXISTS tasks")
            db.execute("DROP TABLE IF EXISTS settings")
            db.execute(f"CREATE TABLE tasks ({columns})")
            db.execute("CREATE TABLE settings (format INTEGER, settings TEXT)")
            db.execute("INSERT INTO settings VALUES (?, ?)", (FORMAT_VERSION, json.dumps(settings)))

    def settings(self) -> dict[str, JSON] | None:
        """Return what all embeddings are made with, None without a complete index; ValueError where that is newer."""
        if not self.path.is_file():
            return None
        with self._transaction() as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
            if not tables:  # killed before the first transaction ended
                return None
            if not {"tasks", "settings"} <= tables:
                raise ValueError(f"library: expected the index of a library, got another database at {self.path}.")
            version, settings = db.execute("SELECT format, settings FROM settings").fetchone()
        if version not in (1, FORMAT_VERSION):
            raise ValueError(
                f"library: expected format {FORMAT_VERSION} or older, {self.path.parent} has format {version}; upgrade "
                "task2vec_ext."
            )
        return dict(json.loads(settings))

    def entries(self) -> list[Entry]:
        """Return all tasks, in the order in which they came."""
        with self._transaction() as db:
            return [Entry(*row) for row in db.execute(f"SELECT {', '.join(_COLUMNS)} FROM tasks ORDER BY id")]

    def any_done(self) -> bool:
        """Return whether a task is embedded."""
        if self.settings() is None:
            return False
        with self._transaction() as db:
            return db.execute("SELECT 1 FROM tasks WHERE state = 'done' LIMIT 1").fetchone() is not None

    def comparable(self) -> list[int]:
        """Return the ids, in order, of all tasks that have distances: embedded, and not all zero."""
        with self._transaction() as db:
            return [i for (i,) in db.execute("SELECT id FROM tasks WHERE state = 'done' AND norm > 0 ORDER BY id")]

    def find(self, key: int | str) -> Entry | None:
        """Return one task by its id or its name, or None."""
        column = "id" if isinstance(key, int) else "name"
        with self._transaction() as db:
            query = f"SELECT {', '.join(_COLUMNS)} FROM tasks WHERE {column} = {_VALUES[column]}"
            row = db.execute(query, (_to_sql(key),)).fetchone()
        return None if row is None else Entry(*row)

    def add(self, tasks: Iterable[tuple[str, int]]) -> dict[str, Entry]:
        """Add new tasks (name, number of images), which wait to be embedded, and return all tasks by name."""
        columns = ("name", "file", "pictures", "state")
        query = f"INSERT OR IGNORE INTO tasks ({', '.join(columns)}) VALUES ({', '.join(_VALUES[c] for c in columns)})"
        rows = [(name, file_name(name), images, "waiting") for name, images in tasks]
        with self._transaction() as db:
            db.executemany(query, [tuple(map(_to_sql, row)) for row in rows])
        return {entry.name: entry for entry in self.entries()}

    def update(self, entry: Entry) -> None:
        """Write a task's row, on the disk when this returns."""
        columns = ", ".join(f"{name} = {value}" for name, value in _VALUES.items())
        with self._transaction() as db:
            db.execute(f"UPDATE tasks SET {columns} WHERE id = ?", (*map(_to_sql, asdict(entry).values()), entry.id))

    def remove(self, entry: Entry) -> None:
        """Forget a task."""
        with self._transaction() as db:
            db.execute("DELETE FROM tasks WHERE id = ?", (entry.id,))

    def damage(self) -> str | None:
        """Return what SQLite finds wrong with the file, or None."""
        with self._transaction() as db:
            (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        return None if found == "ok" else found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's changes, or none."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as db:
                db.text_factory = lambda text: text.decode("utf-8", "surrogatepass")
                db.execute("BEGIN")
                yield db
                db.execute("COMMIT")  # what is not committed when the connection closes never was
        except sqlite3.Error as error:
            raise RuntimeError(
                f"library: expected an index that can be read and written at {self.path}, got: {error}; see to disk "
                "and permissions; if it is damaged, delete it and build again, what is sound is kept."
            ) from error


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep every other process from changing a library, or raise BusyError where one is."""
    busy = (
        f"another process is adding tasks to {folder}; wait until it ends (task2vec library status DIR shows how far)."
    )
    with locked(folder, "library", busy):
        yield


def is_locked(folder: Path) -> bool:
    """Return whether a process is changing the library."""
    try:
        with lock(folder):
            return False
    except BusyError:
        return True


def _to_sql(value: object) -> object:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
