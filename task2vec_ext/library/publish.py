"""What becomes of a task: an embedding in the folder, or a record of why it failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..data.identity import digest_of_record, same_digest
from ..embedding import Embedding

if TYPE_CHECKING:
    from ..data import Task
    from .folder import Folder
    from .settings import LibrarySettings


class Outcome(NamedTuple):
    """What became of a task."""

    error: str | None = None  # None: it is embedded


class Publisher(NamedTuple):
    """What writes the tasks of one build, beside any number of other builds."""

    files: Folder
    made_with: LibrarySettings
    retry_failed: bool

    def settled(self, task: Task) -> Outcome | None:
        """Return what became of a task since this build began, by another process; None if it is still to be done."""
        if not self.retry_failed and (failure := self.files.failure(task.name)) is not None:
            return Outcome(failure.error)
        there = self.files.embedding_of(task.name).exists() and self._is_there(task, task.record())
        return Outcome() if there else None

    def publish(self, task: Task, record: str | None, embedding: Embedding) -> Outcome:
        """Put an embedding into the folder, unless another process did; `record` is of the images, taken before."""
        self.files.check(self.made_with)
        if not self._is_there(task, record):
            embedding.save(self.files.embedding_of(task.name))
        self.files.forget_failure(task.name)
        self.files.keep_record(task.name, record)
        return Outcome()

    def fail(self, task: Task, error: Exception) -> Outcome:
        """Write down why a task has no embedding."""
        why = f"{type(error).__name__}: {error}"
        self.files.fail(task.name, len(task), why)
        return Outcome(why)

    def _is_there(self, task: Task, record: str | None) -> bool:
        """Whether the embedding of these images is in the library, sound."""
        try:
            embedding = Embedding.load(self.files.embedding_of(task.name))
        except ValueError:  # nothing there, or damaged
            return False
        same = embedding.name == task.name and same_digest(embedding.task_digest, digest_of_record(record))
        return same and not self.made_with.changes(embedding)
