"""Build a library: embed every task once, and resume after an interruption."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._util.atomic import check_writable, remove_leftovers
from .._util.numbers import whole
from .._util.progress import library_progress
from .._util.warnings import Task2VecWarning
from ..data import ImageCache, Task, TaskSource, as_task
from ..embed import FeatureCache, Work, draw_images, embed_like
from ..embed.spread import Embedder
from ..embedding import Embedding
from ..probe.load import load_probe
from ..probe.probe import Probe
from ..settings import EmbedSettings
from ..words import Decoder, OnError
from .cluster import build_on_cluster
from .folder import Folder
from .library import Library
from .publish import Publisher
from .settings import LibrarySettings

_REHEARSED = 4
"""Images."""


def build_library(
    tasks: Iterable[TaskSource],
    folder: str | os.PathLike[str],
    probe: str | nn.Module | Probe = "resnet34",
    *,
    settings: EmbedSettings | None = None,
    weights: Any = None,
    image_size: int | None = None,
    decoder: Decoder | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    image_cache: ImageCache | None = None,
    on_error: OnError = "raise",
    feature_cache: FeatureCache | None = None,
    retry_failed: bool = False,
    part: tuple[int, int] | None = None,
    ray: str | bool | None = None,
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
        decoder: As for `fisher_embed`.
        device: As for `fisher_embed`. This and the next five may change from one build to the next.
        batch_size: Images per batch.
        num_workers: As for `fisher_embed`.
        image_cache: As for `fisher_embed`; all tasks share it.
        on_error: An image that cannot be read fails its task, or is left out and counted (``"skip"``).
        feature_cache: Cache of features that tasks share; default: one of 256 MiB.
        retry_failed: Try again the tasks that failed before.
        part: ``(k, n)``: embed one of n parts of the tasks, k = 0…n − 1. Processes that build the parts into one
            folder, on any machines that see it, make the whole library.
        ray: Address of a Ray cluster whose workers embed (extra ``ray``), one on each GPU, or one for ``1 +
            num_workers`` CPUs (default: 0); True or ``"auto"``: the one that runs here, else this machine. This process
            alone writes into the folder. Workers that are lost are replaced. Of a task of more than 16,384 images they
            share the images: the same bits for any number of workers, within 1e-6 of one process.
        progress: Show progress: bars where standard error is a terminal, else (only if True) a line per task.

    Returns:
        The library.

    Raises:
        ValueError: If two tasks have one name, a task has files of other names or labels than when it was embedded, the
            library was built with another probe, other settings or in a newer format, or the options fit none of
            the tasks. Raised before any task is embedded, unless two processes begin one library with two settings.
        TypeError: If `tasks` is one path, not a list.
        OSError: If an embedding could not be written, or a disk was full.
        RuntimeError: If there is no cluster at the address, or its workers have not this version of the package.
        ImportError: If Ray is not installed.

    Note:
        Tasks whose images are not files (`Task.digest` is None) are identified by their name alone.
    """
    if isinstance(tasks, (str, os.PathLike)):  # its letters would be tasks
        raise TypeError(
            f"build_library: expected a list of tasks, got {os.fspath(tasks)!r}; pass [{os.fspath(tasks)!r}]."
        )
    if part is not None:
        whole("build_library", "the second number of part", part[1], 1)
        whole("build_library", "the first number of part", part[0], 0, part[1] - 1)
    settings = settings or EmbedSettings()
    named = [as_task(task, target=settings.loss_object.target) for task in tasks]
    _check_names(named)
    net = load_probe(probe, weights=weights, image_size=image_size, decoder=decoder)
    made_with = LibrarySettings.of(net, settings)
    owned = isinstance(probe, str)
    images, features = image_cache or ImageCache(), feature_cache or FeatureCache()
    work = Work(device, batch_size, num_workers, on_error, None, images, features)
    embedder = partial(Embedder, net, settings, owned=owned)
    embedder(work)  # or every task would fail of what it checks
    files = Folder(Path(folder).expanduser())
    if not files.stamps():
        _rehearse(named, settings, embedder(replace(work, num_workers=0, on_error="skip", feature_cache=None)))
    check_writable("build_library", files.root)
    library = _opened(files, made_with)
    mine = named
    if part is not None:  # the largest first, dealt like cards
        mine = sorted(named, key=lambda task: (-len(task), task.name))[part[0] :: part[1]]
    todo = _todo(library, files, mine, retry_failed)
    remove_leftovers(files.embeddings)
    total = sum(len(task) for task in todo)
    with library_progress(len(mine), total, progress, len(mine) - len(todo)) as told:
        publisher = Publisher(files, made_with, retry_failed, told)
        if ray:
            build_on_cluster(ray, net, work, owned, todo, publisher)
        else:
            here = embedder(replace(work, progress=told.of_pass))
            for task in todo:
                if not publisher.settled(task):
                    publisher.take(task, partial(here.embed, task))
    return library


def _rehearse(tasks: Sequence[Task], settings: EmbedSettings, embedder: Embedder) -> None:
    """Raise ValueError if the options fit none of the tasks, which would all fail, one by one.

    A few images of the first task pass through the probe; only if that fails, those of the next. An image that cannot
    be read says nothing of the options, and is left out.
    """
    errors: list[tuple[str, Exception]] = []
    for task in tasks:
        try:
            embedder.features(task, draw_images(task, settings)[:_REHEARSED])
            return
        except Exception as error:
            errors.append((task.name, error))
    if errors:
        name, first = errors[0]
        raise ValueError(
            f"build_library: expected options that fit a task, they fit none of {len(errors)}; {name!r}: "
            f"{type(first).__name__}: {first}"
        ) from first


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
            f"build_library: expected tasks of different names, got some more than once: {shown}; rename them "
            "(as_task(…, name=…), or the folders)."
        )


def _opened(files: Folder, made_with: LibrarySettings) -> Library:
    """Return the library, made where there is none, or raise where its embeddings would not be like those to come."""
    before = files.made_with()
    if before is not None and files.stamps():
        files.check(made_with)
    if before is None or files.is_old or before.changes(made_with):  # no embedding has other settings
        files.create(made_with)
    files.check(made_with)
    return Library(files.root)


def _todo(library: Library, files: Folder, tasks: Sequence[Task], retry_failed: bool) -> list[Task]:
    """Return the tasks that are to be embedded; refuse other tasks of known names."""
    known = {entry.name: entry for entry in library.entries()}
    done = {task.name for task in tasks if task.name in known and known[task.name].state == "done"}
    records = {name: files.record(known[name]) for name in done}
    changes = {task.name: task.change_since(records[task.name]) for task in tasks if task.name in done}
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
        if task.name in done and records[task.name] == known[task.name].digest:
            files.keep_record(task.name, task.record())
    failed = set() if retry_failed else {entry.name for entry in known.values() if entry.state == "failed"}
    return [task for task in tasks if task.name not in done | failed]
