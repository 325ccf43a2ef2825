"""How a library comes to be: every task embedded once, whatever happens in between."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._index import Entry, Index, lock
from ._pictures import choose_device
from ._progress import library_progress
from .comparable import setting_differences
from .data import Task, as_task
from .embed import fisher_embed
from .embedding import Embedding
from .head import head_l2
from .library import Library, sha256_of
from .losses import as_loss
from .probe import load_probe
from .variational import variational_options

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from torch import nn

    from ._progress import Pass
    from .data import TaskSource
    from .embedding import JSON
    from .probe import Probe

_OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(fisher_embed).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
_OF_PROBE = ("weights", "head", "preprocess", "image_size")
# What may differ between the tasks of a library: where and how the work is done, and what to do about broken pictures.
_OF_WORK = ("device", "batch_size", "num_workers", "on_error", "name", "progress")
_OF_VARIATIONAL = ("recipe", "beta", "noise", "epochs", "epoch_samples")


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
    target = as_loss(options.get("loss", _OPTIONS["loss"])).target
    named = [as_task(task, target=target) for task in tasks]
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
    options["device"] = choose_device(net.module, options.get("device"), owned=isinstance(probe, str))
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
    loss = as_loss(chosen["loss"])
    chosen["loss"] = loss.options()
    chosen["head_l2"] = head_l2(chosen["head_method"], chosen["head_l2"], loss, chosen["class_balanced"])
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
        known = self.library.index.add((task.name, len(task)) for task in tasks)
        left_out = {task.name for task in done}
        if not retry_failed:
            left_out |= {entry.name for entry in known.values() if entry.state == "failed"}
        return [(task, known[task.name]) for task in tasks if task.name not in left_out]

    def clean(self) -> None:
        """Delete what a killed build was just writing."""
        for file in (self.library.folder / "embeddings").glob(".task2vec-*"):
            file.unlink()

    def embed(self, task: Task, entry: Entry, progress: Pass) -> Entry:
        """Return the task's entry once it is embedded and saved, or has failed."""
        started = time.monotonic()
        index, file = self.library.index, self.library.file(entry)
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
        self.library.matrix.write(entry.id, embedding.fisher)
        return index.update(
            entry,
            pictures=len(task),
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

    def _is_done(self, entry: Entry) -> bool:
        return entry.state == "done" and self.library.file(entry).is_file()

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
