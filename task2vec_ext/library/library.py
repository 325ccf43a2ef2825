"""A library: read, search, remove and check the embeddings in its folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from .._util.words import check_word
from ..distance.comparable import check_comparable
from ..embedding import Embedding, ProbeInfo
from ..settings import EmbedSettings
from ..words import SymDistanceName
from .index import Entry, Index, is_locked, lock
from .matrix import Matrix, nearest
from .settings import LibrarySettings
from .shortlist import shortlist


class Neighbour(NamedTuple):
    """A task that is near another one, and the distance between them."""

    name: str
    distance: float


class Library:
    """The embeddings of many tasks in a folder, made and extended by `build_library`.

    Raises:
        ValueError: If there is no library, or one of another format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open the index."""
        self.folder = Path(folder).expanduser()
        self.index = Index(self.folder / "index.sqlite")
        if (record := self.index.settings()) is None:
            raise ValueError(f"library: expected a library at {self.folder}, found none; task2vec embed builds one.")
        self.made_with = LibrarySettings.from_json(record)
        """The probe and the settings of all its embeddings, and their length."""
        self.matrix = Matrix(self.folder / "matrix.f32", self.made_with.filters)

    @property
    def settings(self) -> EmbedSettings:
        """The settings of all its embeddings."""
        return self.made_with.settings

    @property
    def probe(self) -> ProbeInfo:
        """The network that all its tasks were embedded with."""
        return self.made_with.probe

    def names(self) -> list[str]:
        """Return the names of the tasks that have an embedding, in the order in which they were added."""
        return [entry.name for entry in self.entries() if entry.state == "done"]

    def __repr__(self) -> str:
        """Return one line: folder, tasks by state."""
        return f"Library({str(self.folder)!r}, {self.status()})"

    def entries(self) -> list[Entry]:
        """Return an entry for every task, in the order in which they were added."""
        return self.index.entries()

    def status(self) -> dict[str, int]:
        """Return how many tasks are ``"done"``, ``"failed"`` and ``"waiting"``."""
        counts = Counter(entry.state for entry in self.entries())
        return {state: counts[state] for state in ("done", "failed", "waiting")}

    @property
    def is_building(self) -> bool:
        """Whether a process is changing the library now."""
        return is_locked(self.folder)

    def embedding(self, name: str) -> Embedding:
        """Return the embedding of the task of that name.

        Raises:
            ValueError: If the library has no such task, it is not embedded, or its file is damaged.
        """
        entry = self._find(name)
        if entry.state != "done":
            why = "it waits to be" if entry.error is None else f"that failed: {entry.error}"
            raise ValueError(f"library: expected an embedded task, {name!r} is not ({why}); build the library.")
        return Embedding.load(self.file(entry))

    def nearest(self, task: str | Embedding, k: int = 10, *, distance: SymDistanceName = "sym") -> list[Neighbour]:
        """Return the tasks nearest to one.

        Args:
            task: The name of a task in the library, which is left out of the result, or an embedding.
            k: Number of nearest tasks.
            distance: ``"sym"`` for the paper's d_sym, ``"sym_scaled"`` for that of embeddings scaled to unit mean.

        Returns:
            At most k tasks, nearest first. d_sym is within 1e-7 of `distance_matrix`'s. All tasks are compared; beyond
            100,000 tasks, where faiss is installed (extra ``faiss``), only the 1,000 that are nearest in centred,
            floored log F; `benchmarks/nearest.py` measures how many of the ten nearest are among these. Tasks whose F
            is all zero are never returned.

        Raises:
            ValueError: If there is no such task or distance, nothing to compare it with, or the embedding cannot be
                compared with the library's.

        Note:
            Memory does not grow with the library: the matrix is read block by block. A lost one is made again.
        """
        check_word("library", "distance", distance, SymDistanceName)
        if k < 1:
            raise ValueError(f"library: expected k >= 1 nearest tasks, got {k}.")
        query = self.embedding(task) if isinstance(task, str) else task
        own = self._find(task).id if isinstance(task, str) else None
        slots = torch.tensor([id for id in self.index.comparable() if id != own], dtype=torch.int64)
        if len(slots) == 0:
            raise ValueError(f"library: expected tasks to compare with in {self.folder}, found none; build it first.")
        if query.norm == 0:
            raise ValueError(f"library: expected an embedding that is not all zero, {query.name!r} is.")
        if own is None:
            check_comparable([Embedding.load(self.file(self._find(int(slots[0])))), query])
        self.restore_matrix()
        slots = shortlist(self.folder / "shortlist.faiss", self.matrix, query.fisher, slots)
        found = nearest(self.matrix, query.fisher[None], slots, k, distance)
        pairs = zip(found.slots[0].tolist(), found.distances[0].tolist(), strict=True)
        return [Neighbour(self._find(slot).name, distance) for slot, distance in pairs]

    def restore_matrix(self) -> None:
        """Write the matrix again, from the embeddings, if it was lost or cut off."""
        done = [entry for entry in self.entries() if entry.state == "done"]
        if done and not self.matrix.holds(max(entry.id for entry in done)):
            for entry in done:
                if self.file(entry).is_file():
                    self.matrix.write(entry.id, Embedding.load(self.file(entry)).fisher)

    def remove(self, names: Iterable[str]) -> None:
        """Remove the tasks of these names from the library, and delete their embeddings.

        Raises:
            ValueError: If one is not in the library; nothing was removed.
            RuntimeError: If another process is changing the library.
        """
        with lock(self.folder):
            for entry in [self._find(name) for name in names]:
                # In this order: where this is interrupted, it can be asked for again.
                self.file(entry).unlink(missing_ok=True)
                self.index.remove(entry)

    def verify(self) -> list[str]:
        """Read every byte of the library and return a text for each problem; none if there is no problem.

        Raises:
            RuntimeError: If another process is changing the library.
        """
        with lock(self.folder):
            if (damage := self.index.damage()) is not None:
                return [f"{self.index.path} is damaged: {damage}; delete it and build again, what is sound is kept"]
            done = [entry for entry in self.entries() if entry.state == "done"]
            known = {entry.file for entry in done}
            strays = sorted(file.name for file in (self.folder / "embeddings").glob("*") if file.name not in known)
            return [
                *(f"{entry.name}: {wrong}" for entry in done if (wrong := self._wrong(entry)) is not None),
                *(f"embeddings/{name} belongs to no task that is done; build again, or delete it" for name in strays),
            ]

    def _wrong(self, entry: Entry) -> str | None:
        """What is wrong with a task that is done, or None."""
        remedy = "remove the task (task2vec library rm) and embed it again"
        file = self.file(entry)
        if not file.is_file():
            return f"{file} is missing; build again"
        if sha256_of(file) != entry.sha256:
            return f"{file} is damaged, its checksum is not that of the index; {remedy}"
        embedding = Embedding.load(file)
        if embedding.name != entry.name:
            return f"{file} holds another task, {embedding.name!r}; {remedy}"
        try:
            row = self.matrix.read(torch.tensor([entry.id]))[0]
        except (OSError, ValueError):  # no file, or too short
            row = torch.empty(0)
        if not torch.equal(row, embedding.fisher.float()):
            return f"row {entry.id} of {self.matrix.path} is not its embedding; delete that file, it is made again"
        return None

    def _find(self, key: int | str) -> Entry:
        """Return a task by its name, or by an id that the index gave."""
        if (entry := self.index.find(key)) is not None:
            return entry
        if isinstance(key, int):
            raise RuntimeError(f"library: {self.folder} was changed while it was searched; ask again.")
        raise ValueError(f"library: expected a task of {self.folder}, got {key!r}; task2vec library ls lists them.")

    def file(self, entry: Entry) -> Path:
        """Return the file of a task's embedding, whether or not it exists yet."""
        return self.folder / "embeddings" / entry.file


def sha256_of(file: Path) -> str:
    """Return the checksum of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
