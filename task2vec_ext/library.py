"""A library: the embeddings of many tasks in one folder, built without babysitting, and the nearest of them to a task.

======================  ============================================================================================
``index.sqlite``        the tasks, how far each is, what all embeddings were made with
``embeddings/*``        one `Embedding` each, as `Embedding.save` writes it
``matrix.f32``          F of all of them, ``[id, K]`` float32, from which `Library.nearest` reads
``shortlist.faiss``     only beyond 100,000 tasks: what finds the candidates
``lock``                held by the process that changes the library
======================  ============================================================================================

A task is first a file, then a row of the matrix, then done in the index, each on the disk before the next. A build that
was killed anywhere between goes on there: a file that the index does not know is taken up, not embedded again.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ._index import Entry, Index, is_locked, lock
from ._matrix import Matrix, SymKind, nearest
from ._progress import library_progress
from ._shortlist import shortlist
from .data import Task, as_task
from .embed import fisher_embed, probe_device
from .embedding import Embedding, check_comparable, setting_differences
from .head import head_l2
from .probe import load_probe
from .variational import variational_options

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from torch import nn

    from .data import TaskSource
    from .embedding import JSON
    from .probe import Probe

__all__ = ["Entry", "Library", "Neighbour", "build_library"]

_OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(fisher_embed).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
_OF_PROBE = ("weights", "head", "preprocess", "image_size")
# What may differ between the tasks of a library: where and how the work is done, and what to do about broken pictures.
_OF_WORK = ("device", "batch_size", "num_workers", "on_error", "name", "progress")
_OF_VARIATIONAL = ("recipe", "beta", "noise", "epochs", "epoch_samples")


class Neighbour(NamedTuple):
    """A task near another.

    Args:
        name: which.
        distance: to it.
    """

    name: str
    distance: float


class Library:
    """The embeddings of many tasks in a folder; `build_library` makes and extends it.

    Args:
        folder: where `build_library` put it.

    Raises:
        ValueError: There is no library, or one of another format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open the index."""
        self.folder = Path(folder)
        self._index = Index(self.folder / "index.sqlite")
        settings = self._index.settings()
        if settings is None:
            raise ValueError(
                f"library: expected a library at {self.folder}, found none; task2vec library build makes one."
            )
        self.settings = settings
        """What all embeddings were made with: probe, preprocessing and the options of `fisher_embed`."""
        filters = settings["filters"]
        assert isinstance(filters, int)
        self._matrix = Matrix(self.folder / "matrix.f32", filters)

    def __repr__(self) -> str:
        """Return one line: folder, tasks by state."""
        return f"Library({str(self.folder)!r}, {self.status()})"

    def entries(self) -> list[Entry]:
        """Return what is known of every task, in the order in which they came."""
        return self._index.entries()

    def status(self) -> dict[str, int]:
        """Return how many tasks are ``"done"``, ``"failed"`` and ``"waiting"``."""
        counts = Counter(entry.state for entry in self.entries())
        return {state: counts[state] for state in ("done", "failed", "waiting")}

    @property
    def is_building(self) -> bool:
        """Whether a process is changing the library at this moment."""
        return is_locked(self.folder)

    def embedding(self, name: str) -> Embedding:
        """Return the embedding of a task.

        Args:
            name: The task's.

        Raises:
            ValueError: The library has no such task, it is not embedded, or its file is damaged.
        """
        entry = self._find(name)
        if entry.state != "done":
            why = "it waits to be" if entry.error is None else f"that failed: {entry.error}"
            raise ValueError(f"library: expected an embedded task, {name!r} is not ({why}); build the library.")
        return Embedding.load(self._file(entry))

    def nearest(self, task: str | Embedding, k: int = 10, *, kind: SymKind = "sym") -> list[Neighbour]:
        """Return the tasks nearest to one.

        Args:
            task: The name of one in the library, which is left out of the answer, or an embedding.
            k: How many.
            kind: ``"sym"`` for the paper's d_sym, ``"sym_scaled"`` for that of embeddings scaled to unit mean.

        Returns:
            At most k tasks, nearest first. d_sym is within 1e-7 of `distance_matrix`'s. All tasks are compared; beyond
            100,000 tasks, where faiss is installed (extra ``faiss``), only the 1,000 that are nearest in centred,
            floored log F: see `benchmarks/nearest.py` for how many of the ten nearest these hold. Tasks whose F is all
            zero are near to none.

        Raises:
            ValueError: There is no such task, nothing to compare it with, or the embedding was made in another way.

        Note:
            Memory does not grow with the library: the matrix is read block by block.
        """
        if k < 1:
            raise ValueError(f"library: expected k >= 1 nearest tasks, got {k}.")
        query = self.embedding(task) if isinstance(task, str) else task
        own = self._find(task).id if isinstance(task, str) else None
        slots = torch.tensor([id for id in self._index.comparable() if id != own], dtype=torch.int64)
        if len(slots) == 0:
            raise ValueError(f"library: expected tasks to compare with in {self.folder}, found none; build it first.")
        if query.norm == 0:
            raise ValueError(f"library: expected an embedding that is not all zero, {query.name!r} is.")
        if own is None:
            check_comparable([Embedding.load(self._file(self._by_id(int(slots[0])))), query])
        slots = shortlist(self.folder / "shortlist.faiss", self._matrix, query.fisher, slots)
        found = nearest(self._matrix, query.fisher[None], slots, k, kind)
        pairs = zip(found.slots[0].tolist(), found.distances[0].tolist(), strict=True)
        return [Neighbour(self._by_id(slot).name, distance) for slot, distance in pairs]

    def remove(self, names: Iterable[str]) -> None:
        """Forget tasks, and delete their embeddings.

        Args:
            names: Of the tasks.

        Raises:
            ValueError: One is not in the library; nothing was removed.
            RuntimeError: Another process is changing the library.
        """
        with lock(self.folder):
            for entry in [self._find(name) for name in names]:
                # In this order: where this is interrupted, it can be asked for again.
                self._file(entry).unlink(missing_ok=True)
                self._index.remove(entry)

    def verify(self) -> list[str]:
        """Return all that is wrong with the library, having read every byte of it; nothing in a sound one.

        Raises:
            RuntimeError: Another process is changing the library.
        """
        with lock(self.folder):
            damage = self._index.damage()
            if damage is not None:
                return [f"{self._index.path} is damaged: {damage}; delete it and build again, what is sound is kept"]
            done = [entry for entry in self.entries() if entry.state == "done"]
            known = {entry.file for entry in done}
            strays = sorted(file.name for file in (self.folder / "embeddings").glob("*") if file.name not in known)
            return [
                *(f"{entry.name}: {wrong}" for entry in done if (wrong := self._wrong(entry)) is not None),
                *(f"embeddings/{name} belongs to no task that is done; build again, or delete it" for name in strays),
            ]

    def _wrong(self, entry: Entry) -> str | None:
        """What is wrong with a task that is done, or None."""
        remedy = "remove the task (task2vec library rm) and build again"
        file = self._file(entry)
        if not file.is_file():
            return f"{file} is missing; build again"
        if _sha256(file) != entry.sha256:
            return f"{file} is damaged, its checksum is not that of the index; {remedy}"
        embedding = Embedding.load(file)
        if embedding.name != entry.name:
            return f"{file} holds another task, {embedding.name!r}; {remedy}"
        try:
            row = self._matrix.read(torch.tensor([entry.id]))[0]
        except (OSError, ValueError):  # no file, or too short
            row = torch.empty(0)
        if not torch.equal(row, embedding.fisher.float()):
            return f"row {entry.id} of {self._matrix.path} is not its embedding; {remedy}"
        return None

    def _find(self, name: str) -> Entry:
        entry = self._index.find(name)
        if entry is None:
            raise ValueError(
                f"library: expected a task of {self.folder}, got {name!r}; task2vec library ls lists them."
            )
        return entry

    def _by_id(self, id: int) -> Entry:
        entry = self._index.find(id)
        if entry is None:
            raise RuntimeError(f"library: {self.folder} was changed while it was searched; ask again.")
        return entry

    def _file(self, entry: Entry) -> Path:
        return self.folder / "embeddings" / entry.file


def build_library(
    tasks: Iterable[TaskSource],
    folder: str | os.PathLike[str],
    probe: str | nn.Module | Probe = "resnet34",
    *,
    retry_failed: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Library:
    """Return a library with the embeddings of all tasks, after embedding those that are not in it yet.

    Can be killed at any moment, by any means: the next build goes on with the task that was in flight. A task that
    fails is recorded with its error, and the others go on.

    Args:
        tasks: What `fisher_embed` takes, each under a name of its own.
        folder: Where the library is, or shall be.
        probe: As for `fisher_embed`; loaded once.
        retry_failed: Try those again that failed before.
        progress: Tell how far it is: bars where standard error is a terminal, else (only if True) a line a task.
        **options: Of `fisher_embed`: of the probe (``weights``, ``image_size``, …), of the estimate (``estimator``,
            ``num_samples``, ``seed``, …), the same for all tasks of a library; and of the work (``device``,
            ``batch_size``, ``num_workers``, ``on_error``), which may change from one build to the next.

    Returns:
        The library.

    Raises:
        ValueError: Two tasks have one name, a task has other pictures than when it was embedded, or the library was
            built with another probe, other settings or in another format. Before any work.
        TypeError: `fisher_embed` has no such option.
        RuntimeError: Another process is changing the library.
        OSError: An embedding could not be written.

    Note:
        Tasks whose pictures are not files of known names (`Task.digest` is None) are known by their name alone.
    """
    unknown = sorted(options.keys() - (_OPTIONS.keys() - {"name", "progress"}))
    if unknown:
        raise TypeError(f"build_library: expected options of fisher_embed, got {', '.join(unknown)}.")
    named = [as_task(task) for task in tasks]
    twins = [name for name, count in Counter(task.name for task in named).items() if count > 1]
    if twins:
        shown = ", ".join(map(repr, twins[:5])) + (", …" if len(twins) > 5 else "")
        raise ValueError(
            f"build_library: expected tasks of different names, got {len(twins)} names more than once: {shown}; rename "
            "them (as_task(…, name=…), or the folders)."
        )
    net = load_probe(probe, **{name: options.pop(name) for name in _OF_PROBE if name in options})
    _check_options(net, options)
    settings = _settings(net, options)
    options["device"] = probe_device(net.module, options.get("device"), owned=isinstance(probe, str))
    root = Path(folder)
    (root / "embeddings").mkdir(parents=True, exist_ok=True)
    with lock(root):
        _create_or_compare(root, settings)
        library = Library(root)
        builder = _Builder(library, net, options)
        todo = builder.todo(named, retry_failed)
        builder.clean()
        with library_progress(len(todo), sum(len(task) for task, _ in todo), progress) as told:
            for task, entry in todo:
                told.ended(len(task), builder.embed(task, entry, told.of_pass))
    return library


class _Asked(Exception):  # noqa: N818  # no error
    """The task has been looked at."""


class _Unasked(Task):
    def __len__(self) -> int:
        raise _Asked


def _check_options(net: Probe, options: dict[str, Any]) -> None:
    """Raise now what `fisher_embed` has against the options: it says so before it looks at a task."""
    with suppress(_Asked):
        fisher_embed(_Unasked((), name="none"), net, **options)


def _settings(net: Probe, options: dict[str, Any]) -> dict[str, JSON]:
    """What all embeddings of a library are made with: the probe and every option that decides the numbers."""
    chosen = {**_OPTIONS, **options}
    variational = variational_options(chosen["estimator"], **{name: chosen[name] for name in _OF_VARIATIONAL})
    layers = net.layers(chosen["layers"], include_batchnorm=chosen["include_batchnorm"])
    chosen["head_l2"] = head_l2(chosen["head_method"], chosen["head_l2"])
    chosen["layers"] = None if chosen["layers"] is None else list(chosen["layers"])
    plain = {name: chosen[name] for name in _OPTIONS if name not in (*_OF_PROBE, *_OF_WORK, *_OF_VARIATIONAL)}
    return {
        "probe": {"name": net.name, "weights": net.weights, "fingerprint": net.fingerprint, "head": net.head},
        "preprocess": None if net.preprocess is None else net.preprocess.to_dict(),
        "filters": layers[-1].stop,
        **plain,
        "variational": None if variational is None else asdict(variational),
    }


def _create_or_compare(root: Path, settings: dict[str, JSON]) -> None:
    """Make the index, or refuse a library whose embeddings would not be like those to come."""
    index = Index(root / "index.sqlite")
    found = index.settings()
    if found is None:
        index.create(settings)
        return
    # An option that is younger than the library had its default.
    found = {**{name: value for name, value in _OPTIONS.items() if name in settings}, **found}
    if _fingerprint(found) == _fingerprint(settings):  # whatever its weights are called
        found["probe"] = settings["probe"]
    keys = dict.fromkeys((*found, *settings))
    differences = [text for key in keys for text in setting_differences(key, found.get(key), settings.get(key))]
    if differences:
        raise ValueError(
            f"build_library: expected the settings that {root} was built with, got others (there against here): "
            f"{'; '.join(differences)}. Use the same, or another folder."
        )


def _fingerprint(settings: dict[str, JSON]) -> JSON:
    probe = settings["probe"]
    assert isinstance(probe, dict)
    return probe["fingerprint"]


class _Builder(NamedTuple):
    """What embeds the tasks of one build."""

    library: Library
    probe: Probe
    options: dict[str, Any]

    def todo(self, tasks: Sequence[Task], retry_failed: bool) -> list[tuple[Task, Entry]]:
        """Return the tasks that are to be embedded; refuse those that are not what they were."""
        known = {entry.name: entry for entry in self.library.entries()}
        done = [task for task in tasks if task.name in known and self._is_done(known[task.name])]
        changed = [task.name for task in done if known[task.name].digest != _digest(task)]
        if changed:
            raise ValueError(
                "build_library: expected the pictures that were embedded, got others for "
                f"{', '.join(map(repr, changed))}; give them other names, or remove them first (task2vec library rm)."
            )
        known = self.library._index.add((task.name, len(task)) for task in tasks)
        left_out = {task.name for task in done}
        if not retry_failed:
            left_out |= {entry.name for entry in known.values() if entry.state == "failed"}
        return [(task, known[task.name]) for task in tasks if task.name not in left_out]

    def clean(self) -> None:
        """Delete what a killed build was just writing."""
        for file in (self.library.folder / "embeddings").glob(".task2vec-*"):
            file.unlink()

    def embed(self, task: Task, entry: Entry, progress: Any) -> Entry:
        """Return the task's entry once it is embedded and saved, or has failed."""
        started = time.monotonic()
        index, file = self.library._index, self.library._file(entry)
        try:
            digest = task.digest()
            embedding = self._saved_before(file, task.name, digest)
            new = embedding is None
            if embedding is None:
                embedding = fisher_embed(task, self.probe, progress=progress, **self.options)
        except Exception as error:  # whatever one task does, the others go on
            why = f"{type(error).__name__}: {error}"
            return index.update(entry, state="failed", error=why, seconds=time.monotonic() - started)
        if new:
            embedding.save(file)
        self.library._matrix.write(entry.id, embedding.fisher)
        return index.update(
            entry,
            pictures=len(task),
            state="done",
            digest=digest,
            sha256=_sha256(file),
            num_samples=embedding.num_samples,
            num_skipped=embedding.num_skipped,
            num_classes=embedding.head.num_classes,
            accuracy=embedding.head.accuracy,
            norm=embedding.norm,
            seconds=time.monotonic() - started,
            error=None,
        )

    def _is_done(self, entry: Entry) -> bool:
        return entry.state == "done" and self.library._file(entry).is_file()

    def _saved_before(self, file: Path, name: str, digest: str | None) -> Embedding | None:
        """The embedding that a build wrote before it was killed; None: there is none of these pictures."""
        try:
            embedding = Embedding.load(file)
        except ValueError:  # nothing there, or damaged
            return None
        head = embedding.head
        made = {
            **embedding.recipe,
            "head_method": head.method,
            "head_l2": head.l2,
            "class_balanced": head.class_balanced,
        }
        # Of this library's settings, unless somebody deleted the index and builds with others now.
        alike = all(made.get(key, value) == value for key, value in self.library.settings.items())
        same = (embedding.name, embedding.recipe["task_digest"], embedding.probe.fingerprint)
        return embedding if alike and same == (name, digest, self.probe.fingerprint) else None


def _digest(task: Task) -> str | None:
    try:
        return task.digest()
    except OSError as error:
        return f"unreadable: {error}"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
