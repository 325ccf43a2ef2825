"""What is in a library's folder; `library/__init__.py` has the layout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from .._util.atomic import atomic_path
from .._util.names import safe_name
from ..data.identity import digest_of_record, same_digest
from .entry import Entry
from .settings import LibrarySettings

FORMAT_VERSION = 3
"""Of the folder's layout; embeddings have their own. Formats 1 and 2 had an index in SQLite (`_Index`)."""


Stamp = tuple[int, int]
"""Size and time of a file: whether it is the one that was read before, without reading it. No time is older or newer
than another."""


def stamp_of(file: Path | os.DirEntry[str]) -> Stamp:
    """Return a file's stamp."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


class Folder:
    """A library's files."""

    def __init__(self, root: Path) -> None:
        """Keep the path; reads nothing."""
        self.root = root
        self.embeddings, self.failures, self.cache = (root / part for part in ("embeddings", "failures", "cache"))

    def made_with(self) -> LibrarySettings | None:
        """Return what all embeddings are made with, None where there is no library; ValueError where that is newer."""
        try:
            record = json.loads((self.root / "library.json").read_text("utf-8"))
            version, settings = record["format"], record["library"]
        except FileNotFoundError:
            old = _Index(self.root)
            return None if old.settings is None else LibrarySettings.from_json(old.settings)
        except (ValueError, KeyError, TypeError):
            raise self._foreign() from None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"library: expected format {FORMAT_VERSION} or older, {self.root} has format {version}; upgrade "
                "task2vec_ext."
            )
        try:
            return LibrarySettings.from_json(settings)
        except (KeyError, TypeError, AttributeError):
            raise self._foreign() from None

    def _foreign(self) -> ValueError:
        return ValueError(
            f"library: expected the settings of a library in {self.root / 'library.json'}, got another file; "
            "delete it, and build again: embeddings are kept."
        )

    def create(self, made_with: LibrarySettings) -> None:
        """Make a library, also of one of version 0.1 or 0.2; embeddings that are there are kept."""
        for part in (self.embeddings, self.failures):
            part.mkdir(exist_ok=True)
        if not (self.root / "library.json").exists():
            for name, error in _Index(self.root).failed():
                self.fail(name, None, error)
        _write_json(self.root / "library.json", {"format": FORMAT_VERSION, "library": made_with.to_json()})

    def check(self, made_with: LibrarySettings) -> None:
        """Raise ValueError where the library is made with other settings than these."""
        there = self.made_with()
        if differences := ["no library any more"] if there is None else there.changes(made_with):
            raise ValueError(
                f"build_library: expected the settings that {self.root} was built with, got others (there against "
                f"here): {'; '.join(differences)}. Use the same, or another folder."
            )

    @property
    def is_old(self) -> bool:
        """Whether it is a library of version 0.1 or 0.2."""
        return not (self.root / "library.json").exists()

    def stamps(self) -> dict[str, Stamp]:
        """Return a stamp of every embedding's file, by its place in the folder."""
        found = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.embeddings) as files:
            for file in files:
                if file.name.endswith(".safetensors"):
                    try:
                        found[f"embeddings/{file.name}"] = stamp_of(file)
                    except FileNotFoundError:  # removed meanwhile
                        continue
        return found

    def embedding_of(self, name: str) -> Path:
        """Return where the embedding of a task is written to."""
        return self.embeddings / f"{file_stem(name)}.safetensors"

    def fail(self, name: str, images: int | None, error: str) -> None:
        """Write down that a task failed."""
        record = {"name": name, "images": images, "error": error}
        _write_json(self.failures / f"{file_stem(name)}.json", record)

    def forget_failure(self, name: str) -> None:
        """A task that failed does not fail any more."""
        (self.failures / f"{file_stem(name)}.json").unlink(missing_ok=True)

    def failure(self, name: str) -> Entry | None:
        """Return why a task failed, None where it did not."""
        return self._failure(self.failures / f"{file_stem(name)}.json")

    def failed(self) -> list[Entry]:
        """Return the tasks that failed."""
        if self.is_old:
            return [Entry(name, "index.sqlite", "failed", error=error) for name, error in _Index(self.root).failed()]
        return [entry for file in self.failures.glob("*.json") if (entry := self._failure(file)) is not None]

    def _failure(self, file: Path) -> Entry | None:
        try:
            record = json.loads(file.read_text("utf-8"))
            return Entry(record["name"], f"failures/{file.name}", "failed", record["images"], error=record["error"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return Entry(file.name, f"failures/{file.name}", "damaged", error="no record of a failure; delete it")

    def record(self, entry: Entry) -> str | None:
        """Return the digest of a task's images, with the files' times where the cache has them (`Task.record`)."""
        try:
            record = (self.cache / "times" / file_stem(entry.name)).read_text("ascii")
        except (OSError, ValueError):
            return entry.digest
        return record if same_digest(entry.digest, digest_of_record(record)) else entry.digest

    def keep_record(self, name: str, record: str | None) -> None:
        """Keep a digest with the files' times, which spares reading them all when the build is continued."""
        if record is not None and record != digest_of_record(record):
            file = self.cache / "times" / file_stem(name)
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(file) as new:
                    new.write_text(record, "ascii")


def file_stem(name: str) -> str:
    """Return the name of a task's files: letters of ASCII for people, and a hash of the exact name.

    It is different for names that differ in case or Unicode form alone, also where the file system takes these for one.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe_name(name.encode('ascii', 'ignore').decode())}-{digest[:12]}"


def _write_json(path: Path, record: dict[str, Any]) -> None:
    with atomic_path(path) as new:
        new.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


class _Index:
    """The index of a library of version 0.1 or 0.2, whose embeddings are read as they are."""

    def __init__(self, root: Path) -> None:
        """Read the settings; None where there is no index."""
        self.path, self.settings = root / "index.sqlite", None
        for version, settings in self._rows("SELECT format, settings FROM settings"):
            if version not in (1, 2):
                raise ValueError(f"library: expected an index of format 1 or 2 at {self.path}, got {version}.")
            self.settings = json.loads(settings)

    def failed(self) -> list[tuple[str, str]]:
        """Return name and error of the tasks that failed."""
        return self._rows("SELECT name, error FROM tasks WHERE state = 'failed'")

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        if not self.path.is_file():
            return []
        try:
            with contextlib.closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                db.text_factory = lambda text: text.decode("utf-8", "surrogatepass")
                tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
                return db.execute(query).fetchall() if tables else []  # killed before the first transaction ended
        except sqlite3.Error as error:
            raise ValueError(
                f"library: expected the index of a library at {self.path}, got: {error}; delete it and build again, "
                "embeddings are kept."
            ) from error
