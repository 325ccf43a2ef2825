"""A library: read, search, remove and check the embeddings in its folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .._util.html import card, table
from .._util.words import check_word
from ..distance.comparable import check_comparable
from ..distance.reference import Reference
from ..embedding import Embedding, ProbeInfo
from ..settings import EmbedSettings
from ..words import SymDistanceName
from .cache import Cache, Segment
from .entry import Entry
from .folder import Folder
from .nearest import EXACT_UP_TO, candidates, nearest
from .table import check_table_file, row_of, write_rows

_T = TypeVar("_T")

_BLOCK_BYTES = 32 << 20
"""Of one float64 block of rows: large enough that its set-up costs nothing, small beside anything else in memory."""


class Neighbour(NamedTuple):
    """A task that is near another one, and the distance between them."""

    name: str
    distance: float


class Library:
    """The embeddings of many tasks in a folder, made and extended by `build_library`.

    Every method sees the folder as it is when it is called, also while other processes add tasks.

    Raises:
        ValueError: If there is no library, or one of another format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Read the settings."""
        self.folder = Path(folder).expanduser()
        self._files = Folder(self.folder)
        if (made_with := self._files.made_with()) is None:
            raise ValueError(f"library: expected a library at {self.folder}, found none; task2vec embed builds one.")
        self.made_with = made_with
        """The probe and the settings of all its embeddings, and their length."""
        self._cache = Cache(self._files, made_with)
        self._rows = max(1, _BLOCK_BYTES // (8 * made_with.filters))

    @classmethod
    def from_hub(cls, repo: str, *, revision: str | None = None) -> Library:
        """Return a library of the Hugging Face hub, downloaded into its cache: `pull_library` without a folder.

        Args:
            repo: A data set, ``"user/name"``.
            revision: Branch, tag or commit; default: the newest.
        """
        from .hub import pull_library

        return pull_library(repo, revision=revision)

    @property
    def settings(self) -> EmbedSettings:
        """The settings of all its embeddings."""
        return self.made_with.settings

    @property
    def probe(self) -> ProbeInfo:
        """The network that all its tasks were embedded with."""
        return self.made_with.probe

    def names(self) -> list[str]:
        """Return the names of the tasks that have an embedding, sorted."""
        return [entry.name for entry in self.entries() if entry.state == "done"]

    def __repr__(self) -> str:
        """Return one line: folder, tasks by state."""
        return f"Library({str(self.folder)!r}, {self.status()})"

    def _repr_html_(self) -> str:
        """The same as a card of a notebook, with the first tasks."""
        entries, shown = self.entries(), 12
        done = [entry for entry in entries[:shown] if entry.state == "done"]
        most = max((entry.norm or 0.0 for entry in done), default=0.0)
        cells, shares = [], []
        for entry in entries[:shown]:
            score, norm = entry.score, entry.norm
            numbers = [f"{n:,}" if n is not None else "" for n in (entry.images, entry.num_outputs)]
            measured = [f"{score:.1%}" if score is not None else entry.state, f"{norm:.4g}" if norm is not None else ""]
            cells.append([entry.name, *numbers, *measured])
            shares.append([None, None, None, None if score is None else max(score, 0.0), norm and norm / most])
        more = f"; {len(entries) - shown:,} more of {len(entries):,} tasks" if len(entries) > shown else ""
        return card(
            f"Library {self.folder.name}",
            f"{self.made_with.filters:,} filters of {self.probe.name} {self.probe.weights}",
            [(f"{count:,}", state) for state, count in self.status().items() if count or state == "done"],
            table(("task", "images", "outputs", "head", "norm"), cells, shares),
            f"{self.settings.estimator} estimator, seed {self.settings.seed}{more}",
        )

    def entries(self) -> list[Entry]:
        """Return an entry for every task, sorted by name."""
        return self._look().entries

    def status(self) -> dict[str, int]:
        """Return how many tasks are ``"done"`` and ``"failed"``, and how many files are ``"damaged"``."""
        counts = Counter(entry.state for entry in self.entries())
        return {state: counts[state] for state in ("done", "failed", "damaged")}

    def table(self) -> list[dict[str, Any]]:
        """Return a row for every task, sorted by name: ``pandas.DataFrame(library.table())``.

        Returns:
            Dictionaries with the fields ``name``, ``state``, ``images``, ``num_samples``, ``num_skipped``,
            ``num_outputs``, ``digest`` and ``error`` of `Entry`; ``metric``, ``score`` (in-sample) and
            ``held_out_score`` of the head; ``norm`` and its standard error ``norm_error``, nats² per weight²;
            ``classes`` and ``metadata``. What is unknown, and most of a task that failed, is None.

        Note:
            Reads every embedding.
        """
        rows = []
        for entry in self.entries():
            embedding = Embedding.load(self.file(entry)) if entry.state == "done" else None
            rows.append(row_of(entry, embedding))
        return rows

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write `table` as a file, atomically.

        Args:
            path: A ``.csv`` or (extra ``parquet``) ``.parquet`` file. `classes` and `metadata` are JSON in it.

        Raises:
            ValueError: If the file has another ending.
            ImportError: If pyarrow is not installed.
            OSError: If it could not be written.
        """
        check_table_file(file := Path(path).expanduser())
        write_rows(file, self.table())

    def file(self, entry: Entry) -> Path:
        """Return the file of an entry."""
        return self.folder / entry.file

    def embedding(self, name: str) -> Embedding:
        """Return the embedding of the task of that name.

        Raises:
            ValueError: If the library has no such task, it is not embedded, or its file is damaged.
        """
        if (path := self._files.embedding_of(name)).is_file():  # without a look at all others
            embedding = Embedding.load(path)
            if embedding.name == name and not self.made_with.changes(embedding):
                return embedding
        entry = self._find(name)
        if entry.state != "done":
            raise ValueError(
                f"library: expected an embedded task, {name!r} is not (that failed: {entry.error}); build the library."
            )
        return Embedding.load(self.file(entry))

    def reference(self) -> Reference:
        """Return what the distance ``library_correlation`` needs: the mean log-Fisher of all tasks that have distances.

        Raises:
            ValueError: If these are fewer than three.
        """
        return self._looking(self._reference)

    def _reference(self, look: _Look) -> Reference:
        first = next((entry for entry in look.entries if entry.norm), None)
        if first is None:
            return Reference.of([])
        wanted = torch.tensor([bool(entry.norm) for entry in look.entries])
        rows = (row for _, block in look.blocks("fisher", wanted) for row in block)
        return Reference.of_rows(rows, Embedding.load(self.file(first)))

    def nearest(
        self,
        task: str | Embedding,
        k: int = 10,
        *,
        distance: SymDistanceName = "sym",
        reference: Reference | None = None,
    ) -> list[Neighbour]:
        """Return the tasks nearest to one.

        Args:
            task: The name of a task in the library, which is left out of the result, or an embedding.
            k: Number of nearest tasks.
            distance: ``"sym"`` for the paper's d_sym, ``"sym_scaled"`` for that of embeddings scaled to unit mean,
                ``"library_correlation"`` for that of their differences from the library's mean log-Fisher.
            reference: Of ``"library_correlation"``; default: that of the library, which a new task does not change.

        Returns:
            At most k tasks, nearest first. Distances are within 1e-6 of `distance_matrix`'s. All tasks are compared;
            by d_sym, beyond 100,000 only the 1,000 that are nearest in centred, floored log F, by a random projection
            of it; `benchmarks/nearest.py` measures how many of the ten nearest are among these. Tasks whose F is all
            zero are never returned.

        Raises:
            ValueError: If there is no such task or distance, nothing to compare it with, or the embedding cannot be
                compared with the library's.

        Note:
            Memory does not grow with the library: F of its tasks is read block by block.
        """
        check_word("library", "distance", distance, SymDistanceName)
        if k < 1:
            raise ValueError(f"library: expected k >= 1 nearest tasks, got {k}.")
        query, own = (self.embedding(task), task) if isinstance(task, str) else (task, None)
        return self._looking(lambda look: self._nearest(look, query, k, distance, own, reference))

    def _nearest(
        self,
        look: _Look,
        query: Embedding,
        k: int,
        distance: SymDistanceName,
        own: str | None,
        reference: Reference | None,
    ) -> list[Neighbour]:
        wanted = torch.tensor([bool(entry.norm) and entry.name != own for entry in look.entries], dtype=torch.bool)
        if not wanted.any():
            raise ValueError(f"library: expected tasks to compare with in {self.folder}, found none; build it first.")
        if query.norm == 0:
            raise ValueError(f"library: expected an embedding that is not all zero, {query.name!r} is.")
        if own is None:
            check_comparable([Embedding.load(self.file(look.entries[int(wanted.nonzero()[0])])), query])
        if distance == "library_correlation":
            reference = reference or self._reference(look)
            check_comparable([reference, query])
        elif int(wanted.sum()) > EXACT_UP_TO:
            near = candidates(look.blocks("sketch", wanted), query.fisher)
            wanted = torch.zeros_like(wanted).index_fill_(0, near, True)
        found = nearest(look.blocks("fisher", wanted), query.fisher, k, distance, reference)
        pairs = zip(found.numbers.tolist(), found.distances.tolist(), strict=True)
        return [Neighbour(look.entries[number].name, distance) for number, distance in pairs]

    def remove(self, names: Iterable[str]) -> None:
        """Remove the tasks of these names from the library, and delete their embeddings.

        Raises:
            ValueError: If one is not in the library; nothing was removed.
        """
        for entry in [self._find(name) for name in names]:
            self.file(entry).unlink(missing_ok=True)
            self._files.forget_failure(entry.name)

    def verify(self) -> list[str]:
        """Read every byte of the library and return a text for each problem; none if there is no problem."""
        return self._looking(self._verify)

    def _verify(self, look: _Look) -> list[str]:
        wrong = [f"{e.file}: {e.error}; build again, or delete it" for e in look.entries if e.state == "damaged"]
        done = torch.tensor([entry.state == "done" for entry in look.entries], dtype=torch.bool)
        for numbers, rows in look.blocks("fisher", done):
            for number, row in zip(numbers.tolist(), rows, strict=True):
                entry = look.entries[number]
                try:
                    embedding = Embedding.load(self.file(entry))
                except ValueError as error:
                    wrong.append(f"{entry.name}: {error} Build again")
                    continue
                if embedding.name != entry.name or not torch.equal(row, embedding.fisher.float()):
                    advice = f"delete {self.folder / 'cache'}, it is made again"
                    wrong.append(f"{entry.name}: the cache has other numbers; {advice}")
        known = {Path(entry.file).name for entry in look.entries}
        strays = sorted(file.name for file in (self.folder / "embeddings").glob("[!.]*") if file.name not in known)
        return wrong + [f"embeddings/{name} is no embedding; delete it" for name in strays]

    def _find(self, name: str) -> Entry:
        for entry in self.entries():
            if entry.name == name:
                return entry
        raise ValueError(f"library: expected a task of {self.folder}, got {name!r}; task2vec library ls lists them.")

    def _looking(self, work: Callable[[_Look], _T]) -> _T:
        """Return what `work` makes of what is in the folder."""
        try:
            return work(self._look())
        except FileNotFoundError:  # another process replaced a file of the cache
            return work(self._look())

    def _look(self) -> _Look:
        """Return what is in the folder now."""
        live, others = self._cache.look()
        found: dict[str, tuple[Entry, int, int]] = {}
        for number, (segment, rows) in enumerate(live.items()):
            for row in rows:
                entry = segment.entries[row]
                if (other := found.get(entry.name)) is None or self.file(entry) == self._files.embedding_of(entry.name):
                    found[entry.name] = entry, number, row
                if other is not None:  # a copy under another name is not the task's file
                    copy = other[0] if found[entry.name][0] is entry else entry
                    why = f"another file has task {entry.name!r}, too"
                    others.append(Entry(Path(copy.file).name, copy.file, "damaged", error=why))
        others += [entry for entry in self._files.failed() if entry.name not in found]
        places = [*found.values(), *((entry, -1, -1) for entry in others)]
        places.sort(key=lambda place: place[0].name)
        at = torch.tensor([[place[1] for place in places], [place[2] for place in places]], dtype=torch.int64)
        return _Look([place[0] for place in places], list(live), at, self._rows)


class _Look(NamedTuple):
    """A library at one moment."""

    entries: list[Entry]
    segments: list[Segment]
    places: Tensor  # [2, N]: segment and row of each entry that is done
    rows: int  # at most, in a block

    def blocks(self, what: str, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield numbers ``[b]`` of entries and their rows ``[b, …]``, of those that are `wanted` ``[N]`` bool."""
        numbers = wanted.nonzero()[:, 0]
        segments, rows = self.places[:, numbers]
        for segment in segments.unique().tolist():
            chosen = segments == segment
            for some, at in zip(numbers[chosen].split(self.rows), rows[chosen].split(self.rows), strict=True):
                yield some, self.segments[segment].rows(what, at)
