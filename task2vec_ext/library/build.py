"""Build a library: embed every task once, and resume after an interruption."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .._util.atomic import check_writable, remove_leftovers
from .._util.progress import library_progress
from .._util.warnings import Task2VecWarning
from ..data import Task, TaskSource, as_task
from ..data.identity import digest_of_record, same_digest
from ..embed import FeatureCache, Work, embed_like, embed_task
from ..embedding import Embedding
from ..probe.feed import choose_device
from ..probe.load import load_probe
from ..probe.precision import check_dtype
from ..probe.probe import Probe
from ..settings import EmbedSettings
from ..words import OnError
from .index import Entry, Index, lock
from .library import Library, sha256_of
from .rehearsal import rehearse
from .settings import LibrarySettings


def build_library(
    tasks: Iterable[TaskSource],
    folder: str | os.PathLike[str],
    probe: str | nn.Module | Probe = "resnet34",
    *,
    settings: EmbedSettings | None = None,
    weights: Any = None,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    on_error: OnError = "raise",
    feature_cache: FeatureCache | None = None,
    retry_failed: bool = False,
    progress: bool | None = None,
) -> Library:
    """Return a library with the embeddings of all tasks, after embedding those that are not in it yet.

    It can be killed at any time: the next build continues with the task that was interrupted. If a task fails, its
    error is recorded, and the others continue. A task whose files were replaced by others of the same names is embedded
    again, with a warning.

    Args:
        tasks: Tasks as for `fisher_embed`, with different names.
        folder: The library's folder, which need not exist.
        probe: As for `fisher_embed`; loaded once.
        settings: What decides the numbers, the same for all tasks of a library; default: ``EmbedSettings()``.
        weights: As for `fisher_embed`.
        image_size: As for `fisher_embed`.
        device: As for `fisher_embed`. This and the next four may change from one build to the next.
        batch_size: Images per batch.
        num_workers: Processes that decode images; 0: this process.
        on_error: An image that cannot be read fails its task, or is left out and counted (``"skip"``).
        feature_cache: Cache of features that tasks share; default: one of 256 MiB.
        retry_failed: Try again the tasks that failed before.
        progress: Show progress: bars where standard error is a terminal, else (only if True) a line per task.

    Returns:
        The library.

    Raises:
        ValueError: If two tasks have one name, a task has files of other names or labels than when it was embedded, the
            library was built with another probe, other settings or in a newer format, or the options fit none of
            the tasks. Raised before any task is embedded.
        TypeError: If `tasks` is one path, not a list.
        RuntimeError: If another process is changing the library.
        OSError: If an embedding could not be written.

    Note:
        Tasks whose images are not files (`Task.digest` is None) are identified by their name alone.
    """
    if isinstance(tasks, (str, os.PathLike)):  # its letters would be tasks
        raise TypeError(
            f"build_library: expected a list of tasks, got {os.fspath(tasks)!r}; pass [{os.fspath(tasks)!r}]."
        )
    settings = settings or EmbedSettings()
    named = [as_task(task, target=settings.loss_object.target) for task in tasks]
    _check_names(named)
    net = load_probe(probe, weights=weights, image_size=image_size)
    made_with = LibrarySettings.of(net, settings)
    place = choose_device(net.module, device, owned=isinstance(probe, str))
    check_dtype(settings.dtype, net.module, place)  # or every task would fail of it
    work = Work(place, batch_size, num_workers, on_error, None, feature_cache or FeatureCache())
    root = Path(folder).expanduser()
    with ExitStack() as ending:
        index = Index(root / "index.sqlite")
        if not index.any_done():
            rehearse(named, net, settings, work)
        check_writable("build_library", root)
        (root / "embeddings").mkdir(exist_ok=True)
        ending.enter_context(lock(root))
        before = index.settings()
        if before is None or (not index.any_done() and made_with.changes(LibrarySettings.from_json(before))):
            index.create(made_with.to_json())  # no embedding has other settings
        library = _opened(root, made_with)
        library.restore_matrix()
        todo = [(named[number], entry) for number, entry in _todo(library, named, retry_failed)]
        remove_leftovers(root / "embeddings")
        images = sum(len(task) for task, _ in todo)
        told = ending.enter_context(library_progress(len(named), images, progress, len(named) - len(todo)))
        builder = _Builder(library, net, replace(work, progress=told.of_pass))
        for task, entry in todo:
            embedded = builder.embed(task, entry)
            if embedded.state == "done":
                library.matrix.write(entry.id, Embedding.load(library.file(entry)).fisher)
            library.index.update(embedded)
            told.ended(entry.name, len(task), embedded.error)
    return library


def embed_for(
    library: Library,
    task: TaskSource,
    probe: str | nn.Module | Probe | None = None,
    *,
    weights: Any = None,
    **work: Any,
) -> Embedding:
    """Return the embedding of a task that is not in a library, with the library's probe and settings.

    Args:
        library: The library.
        task: As for `fisher_embed`.
        probe: The library's probe; default: loaded by its name.
        weights: The file of the probe's weights, if they were read from one.
        **work: Fields of `task2vec_ext.embed.Work`, such as ``device="cuda"`` or ``batch_size=64``.

    Returns:
        The embedding, for `Library.nearest`.

    Raises:
        ValueError: If the probe is not the library's.
        TypeError: If `Work` has no such field.
    """
    return embed_like(library.probe, library.settings, task, probe, weights=weights, work=Work(**work))


def _check_names(tasks: Sequence[Task]) -> None:
    twins = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twins:
        shown = ", ".join(map(repr, twins[:5])) + (", …" if len(twins) > 5 else "")
        raise ValueError(
            f"build_library: expected tasks of different names, got {len(twins)} names more than once: {shown}; rename "
            "them (as_task(…, name=…), or the folders)."
        )


def _opened(root: Path, made_with: LibrarySettings) -> Library:
    """Return the library, or raise where its embeddings would not be like those to come."""
    library = Library(root)
    if differences := library.made_with.changes(made_with):
        raise ValueError(
            f"build_library: expected the settings that {root} was built with, got others (there against here): "
            f"{'; '.join(differences)}. Use the same, or another folder."
        )
    return library


def _todo(library: Library, tasks: Sequence[Task], retry_failed: bool) -> list[tuple[int, Entry]]:
    """Return the numbers and entries of the tasks that are to be embedded; refuse other tasks of known names."""
    known = {entry.name: entry for entry in library.entries()}
    done = {t.name for t in tasks if (e := known.get(t.name)) and e.state == "done" and library.file(e).is_file()}
    changes = {task.name: task.change_since(known[task.name].digest) for task in tasks if task.name in done}
    if others := [name for name, change in changes.items() if change == "other"]:
        raise ValueError(
            "build_library: expected the images that were embedded, got others for "
            f"{', '.join(map(repr, others))}; give them other names, name=… (on the command line NAME=PATH), or remove "
            "them first (task2vec library rm)."
        )
    if replaced := {name for name, change in changes.items() if change == "replaced"}:
        warnings.warn(
            f"build_library: embedding {', '.join(map(repr, sorted(replaced)))} again, whose images were replaced by "
            "others of the same names",
            Task2VecWarning,
            stacklevel=2,
        )
        done -= replaced
    for task in tasks:
        # Libraries before 0.3 kept sizes alone: what fits them is kept, and known better from now on.
        if task.name in done and (digest := known[task.name].digest) is not None and "-" not in digest:
            library.index.update(replace(known[task.name], digest=task.record()))
    known = library.index.add((task.name, len(task)) for task in tasks)
    failed = set() if retry_failed else {entry.name for entry in known.values() if entry.state == "failed"}
    return [(number, known[task.name]) for number, task in enumerate(tasks) if task.name not in done | failed]


class _Builder(NamedTuple):
    """What embeds the tasks of one build."""

    library: Library
    probe: Probe
    work: Work

    def embed(self, task: Task, entry: Entry) -> Entry:
        """Return the task's entry as it is once the embedding is saved, or has failed."""
        started = time.monotonic()
        file = self.library.file(entry)
        try:
            digest, embedding = self._before(file, task)
            saved = embedding is not None
            if embedding is None:
                embedding = embed_task(task, self.probe, self.library.settings, self.work)
        except Exception as error:  # whatever one task does, the others go on
            why = f"{type(error).__name__}: {error}"
            return replace(entry, state="failed", error=why, seconds=time.monotonic() - started)
        if not saved:
            embedding.save(file)
        return replace(
            entry,
            images=len(task),
            state="done",
            digest=digest,
            sha256=sha256_of(file),
            num_samples=embedding.num_samples,
            num_skipped=embedding.num_skipped,
            num_outputs=embedding.head.num_outputs,
            score=embedding.head.best_score,
            norm=embedding.norm,
            seconds=time.monotonic() - started,
            error=None,
        )

    def _before(self, file: Path, task: Task) -> tuple[str | None, Embedding | None]:
        """A record of the images; the embedding that a build wrote before it was killed, where there is one of them."""
        record = task.record()
        try:
            embedding = Embedding.load(file)
        except ValueError:  # nothing there, or damaged
            return record, None
        # Somebody may have deleted the index, and builds with other settings now.
        same = embedding.name == task.name and same_digest(embedding.task_digest, digest_of_record(record))
        return record, embedding if same and not self.library.made_with.changes(embedding) else None
