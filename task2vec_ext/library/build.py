"""How a library comes to be: every task embedded once, whatever happens in between, by one process or many.

Of many, each writes the embeddings of its own tasks; the first alone holds the lock and writes index and matrix.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._util.progress import library_progress
from ..data import Preprocess, Task, as_task
from ..embed.feature_cache import FeatureCache
from ..embed.fisher_embed import fisher_embed
from ..embed.team import RanksLostError, Team
from ..embedding import Embedding
from ..losses import as_loss, loss_of
from ..probe.feed import choose_device
from ..probe.probe import Probe, load_probe
from .index import Entry, lock
from .library import Library, sha256_of
from .settings import OF_PROBE, OF_WORK, OPTIONS, compare, create_or_compare, settings_of
from .task_queue import TaskQueue

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn
    from torch.distributed import ProcessGroup

    from .._util.progress import Pass
    from ..data import TaskSource


def build_library(
    tasks: Iterable[TaskSource],
    folder: str | os.PathLike[str],
    probe: str | nn.Module | Probe = "resnet34",
    *,
    retry_failed: bool = False,
    progress: bool | None = None,
    process_group: ProcessGroup | None = None,
    shard_images: bool = False,
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
        process_group: The ranks of this `torch.distributed` group, all of which call this with the same arguments and
            see the same folder, share the work: whoever is free takes the next task, the largest first. The first rank
            keeps the index and shows the progress.
        shard_images: All ranks work on one task at a time and share its images: for few, large tasks.
        **options: Of `fisher_embed`: of the probe (``weights``, ``image_size``, …), of the estimate (``estimator``,
            ``num_samples``, ``seed``, …), the same for all tasks of a library; and of the work (``device``,
            ``batch_size``, ``num_workers``, ``on_error``, ``feature_cache``: default, one of 256 MiB), which may change
            from one build to the next.

    Returns:
        The library.

    Raises:
        ValueError: If two tasks have one name, a task has other images than when it was embedded, or the library was
            built with another probe, other settings or in another format, or `shard_images` without a group. Before
            any work.
        TypeError: If `fisher_embed` has no such option.
        RuntimeError: If another process is changing the library.
        OSError: If an embedding could not be written.

    Note:
        Tasks whose images are not files of known names (`Task.digest` is None) are known by their name alone.
    """
    unknown = sorted(options.keys() - (OPTIONS.keys() - {"name", "progress"}))
    if unknown:
        raise TypeError(f"build_library: expected options of fisher_embed, got {', '.join(unknown)}.")
    if shard_images and process_group is None:
        raise ValueError(
            "build_library: expected a process_group with shard_images, got none; start several (torchrun)."
        )
    target = as_loss(options.get("loss", OPTIONS["loss"])).target
    named = [as_task(task, target=target) for task in tasks]
    twins = [name for name, count in Counter(task.name for task in named).items() if count > 1]
    if twins:
        shown = ", ".join(map(repr, twins[:5])) + (", …" if len(twins) > 5 else "")
        raise ValueError(
            f"build_library: expected tasks of different names, got {len(twins)} names more than once: {shown}; rename "
            "them (as_task(…, name=…), or the folders)."
        )
    net = load_probe(probe, **{name: options.pop(name) for name in OF_PROBE if name in options})
    _check_options(net, {**options, "process_group": process_group if shard_images else None})
    settings = settings_of(net, options)
    options.setdefault("feature_cache", FeatureCache())
    options["device"] = choose_device(net.module, options.get("device"), owned=isinstance(probe, str))
    root = Path(folder)
    team = Team(process_group, "the library")
    with ExitStack() as ending:

        def prepare() -> list[tuple[int, Entry]]:
            (root / "embeddings").mkdir(parents=True, exist_ok=True)
            ending.enter_context(lock(root))
            create_or_compare(root, settings)
            library = Library(root)
            todo = _todo(library, named, retry_failed)
            _clean(library)
            return todo

        todo = [(named[number], entry) for number, entry in team.first(prepare)]
        team.attempt(lambda: compare(root, settings))
        library = Library(root)
        images = sum(len(task) for task, _ in todo)
        told = ending.enter_context(library_progress(len(todo), images, progress if team.rank == 0 else False))

        def record(number: int, entry: Entry) -> None:
            _record(library, entry)
            told.ended(len(todo[number][0]), entry)

        if team.size > 1 and not shard_images:
            todo.sort(key=lambda pair: -len(pair[0]))
            builder = _Builder(library, net, Team(None), None, options)
            _share(team, todo, lambda task, entry: builder.embed(task, entry, told.of_pass), record)
        else:
            builder = _Builder(library, net, team, process_group if shard_images else None, options)
            for number, (task, entry) in enumerate(todo):
                embedded = builder.embed(task, entry, told.of_pass)
                team.attempt(partial(record, number, embedded) if team.rank == 0 else _nothing)
    return library


def embed_for(
    library: Library,
    task: TaskSource,
    probe: str | nn.Module | Probe | None = None,
    *,
    weights: Any = None,
    **work: Any,
) -> Embedding:
    """Return the embedding of a task that is not in a library, made as all of the library's were.

    Args:
        library: Whose settings are taken.
        task: What `fisher_embed` takes.
        probe: The library's; default: by the name that it has there.
        weights: The file of its weights, where those are a file.
        **work: Of `fisher_embed`, how the work is done: ``device``, ``batch_size``, ``num_workers``, ``on_error``, …

    Returns:
        The embedding, for `Library.nearest`.

    Raises:
        ValueError: If that is not the library's probe.
        TypeError: If an option would change the embedding.
    """
    of_result = sorted(work.keys() - set(OF_WORK))
    if of_result:
        raise TypeError(f"embed_for: expected options of how the work is done, got {', '.join(of_result)}.")
    settings: dict[str, Any] = dict(library.settings)
    known, preprocess = settings["probe"], settings["preprocess"]
    if not isinstance(probe, Probe):
        options = {
            "preprocess": None if preprocess is None else Preprocess.from_dict(preprocess),
            "head": known["head"],
        }
        probe = load_probe(probe or known["name"], weights=weights or known["weights"], **options)
    if probe.fingerprint != known["fingerprint"]:
        raise ValueError(
            f"embed_for: expected the probe that {library.folder} was built with, {known['name']} with weights "
            f"{known['weights']!r}, got others; pass weights=FILE (task2vec nearest --weights)."
        )
    chosen = {name: settings[name] for name in OPTIONS if name in settings and name not in ("loss", *OF_PROBE)}
    return fisher_embed(
        task, probe, loss=loss_of(settings["loss"]), **chosen, **(settings["variational"] or {}), **work
    )


class _Asked(Exception):  # noqa: N818  # no error
    """The task has been looked at."""


class _Unasked(Task):
    def __len__(self) -> int:
        raise _Asked


def _check_options(net: Probe, options: dict[str, Any]) -> None:
    """Raise now what `fisher_embed` has against the options: it says so before it looks at a task."""
    with suppress(_Asked):
        target = as_loss(options.get("loss", OPTIONS["loss"])).target
        fisher_embed(_Unasked((), name="none", target=target), net, **options)


def _todo(library: Library, tasks: Sequence[Task], retry_failed: bool) -> list[tuple[int, Entry]]:
    """Return the numbers and entries of the tasks that are to be embedded; refuse those that are not what they were."""
    known = {entry.name: entry for entry in library.entries()}
    done = [
        task
        for task in tasks
        if task.name in known and known[task.name].state == "done" and library.file(known[task.name]).is_file()
    ]
    changed = [task.name for task in done if known[task.name].digest != _digest(task)]
    if changed:
        raise ValueError(
            "build_library: expected the images that were embedded, got others for "
            f"{', '.join(map(repr, changed))}; give them other names, or remove them first (task2vec library rm)."
        )
    known = library.index.add((task.name, len(task)) for task in tasks)
    left_out = {task.name for task in done}
    if not retry_failed:
        left_out |= {entry.name for entry in known.values() if entry.state == "failed"}
    return [(number, known[task.name]) for number, task in enumerate(tasks) if task.name not in left_out]


def _clean(library: Library) -> None:
    """Delete what a killed build was just writing."""
    for file in (library.folder / "embeddings").glob(".task2vec-*"):
        file.unlink()


def _nothing() -> None:
    pass


def _record(library: Library, entry: Entry) -> None:
    """Write what came of a task into matrix and index."""
    if entry.state == "done":
        library.matrix.write(entry.id, Embedding.load(library.file(entry)).fisher)
    library.index.update(entry)


def _share(
    team: Team,
    todo: Sequence[tuple[Task, Entry]],
    embed: Callable[[Task, Entry], Entry],
    record: Callable[[int, Entry], None],
) -> None:
    """Embed the tasks on all ranks, and record what comes of them on the first, as it comes."""
    queue = TaskQueue(team.store(), len(todo))
    try:
        _work(queue, team, todo, embed, record)
    except BaseException:
        queue.give_up()
        raise
    team.gather(None)  # the store may end with the first rank's process


def _work(
    queue: TaskQueue,
    team: Team,
    todo: Sequence[tuple[Task, Entry]],
    embed: Callable[[Task, Entry], Entry],
    record: Callable[[int, Entry], None],
) -> None:
    def work(others: Callable[[], None]) -> None:
        for number in queue.claim():
            others()
            queue.report(number, embed(*todo[number]))

    if team.rank > 0:
        work(lambda: None)
        queue.wait_closed()
        return
    stop = threading.Event()

    def record_all() -> None:
        for number, entry in queue.reports(stop):
            record(number, entry)

    with ThreadPoolExecutor(1) as pool:
        recording = pool.submit(record_all)
        try:
            work(lambda: recording.result() if recording.done() else None)  # no work for a recorder that failed
            recording.result()
        finally:
            stop.set()
    queue.close()


class _Builder(NamedTuple):
    """What embeds the tasks of one build."""

    library: Library
    probe: Probe
    team: Team
    group: ProcessGroup | None
    """The ranks that share the images of each task."""
    options: dict[str, Any]

    def embed(self, task: Task, entry: Entry, progress: Pass) -> Entry:
        """Return the task's entry as it is once the embedding is saved, or has failed."""
        started = time.monotonic()
        file = self.library.file(entry)
        try:
            digest, embedding = self.team.first(lambda: self._before(file, task))
            saved = embedding is not None
            if embedding is None:
                embedding = fisher_embed(task, self.probe, progress=progress, process_group=self.group, **self.options)
        except RanksLostError:
            raise
        except Exception as error:  # whatever one task does, the others go on
            why = f"{type(error).__name__}: {error}"
            return replace(entry, state="failed", error=why, seconds=time.monotonic() - started)
        made = embedding
        self.team.attempt(lambda: made.save(file) if self.team.rank == 0 and not saved else None)
        if self.team.rank > 0:
            return entry
        return replace(
            entry,
            images=len(task),
            state="done",
            digest=digest,
            sha256=sha256_of(file),
            num_samples=embedding.num_samples,
            num_skipped=embedding.num_skipped,
            num_outputs=embedding.head.num_outputs,
            score=embedding.head.score,
            norm=embedding.norm,
            seconds=time.monotonic() - started,
            error=None,
        )

    def _before(self, file: Path, task: Task) -> tuple[str | None, Embedding | None]:
        """The images' digest; the embedding that a build wrote before it was killed, where there is one of them."""
        digest = task.digest()
        try:
            embedding = Embedding.load(file)
        except ValueError:  # nothing there, or damaged
            return digest, None
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
        return digest, embedding if alike and same == (task.name, digest, self.probe.fingerprint) else None


def _digest(task: Task) -> str | None:
    try:
        return task.digest()
    except OSError as error:
        return f"unreadable: {error}"
