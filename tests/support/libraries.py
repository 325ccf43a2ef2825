"""Small libraries, and what several tests ask of them."""

import hashlib

from small import Blobs

from task2vec_ext import Library, as_task
from task2vec_ext.embed import embed_task, spread


def tasks_of(count: int, n: int = 12) -> list:
    """So many tasks in memory that differ."""
    return [as_task(Blobs(n=n, noise=0.5 + t, seed=t), name=f"task{t}") for t in range(count)]


def states(built: Library) -> dict[str, str]:
    return {entry.name: entry.state for entry in built.entries()}


def sums(built: Library) -> dict[str, str]:
    """Checksums of all files, by task."""
    files = {entry.name: built.file(entry) for entry in built.entries()}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def watch(monkeypatch) -> list[str]:
    """Return a list that will hold the names of the tasks that are embedded."""
    embedded = []

    def watched(task, *arguments, **options):
        result = embed_task(task, *arguments, **options)
        embedded.append(task.name)
        return result

    monkeypatch.setattr(spread, "embed_task", watched)
    return embedded
