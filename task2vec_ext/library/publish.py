"""What becomes of the tasks of a build: embeddings in the folder, and records of why some failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .._util.atomic import DISK_FULL
from .._util.pool import ClusterError
from ..data.identity import digest_of_record, same_digest
from ..embedding import Embedding

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._util.progress import LibraryProgress
    from ..data import Task
    from .folder import Folder
    from .settings import LibrarySettings


class Publisher(NamedTuple):
    """What writes the tasks of one build, beside any number of other builds, and counts them."""

    files: Folder
    made_with: LibrarySettings
    retry_failed: bool
    told: LibraryProgress

    def settled(self, task: Task) -> bool:
        """Return whether another process embedded a task since this build began, or failed to."""
        failure = None if self.retry_failed else self.files.failure(task.name)
        there = self.files.embedding_of(task.name).exists() and self._is_there(task, task.record())
        if failure is None and not there:
            return False
        self.told.ended(task.name, len(task), None if failure is None else failure.error)
        return True

    def take(self, task: Task, embed: Callable[[], tuple[str | None, Embedding]]) -> None:
        """Publish what `embed` returns: a record of the images, taken before, and the embedding."""
        try:
            record, embedding = embed()
        except Exception as error:  # whatever one task does, the others go on
            self.fail(task, error)
        else:
            self.publish(task, record, embedding)

    def publish(self, task: Task, record: str | None, embedding: Embedding) -> None:
        """Put an embedding into the folder, unless another process did."""
        self.files.check(self.made_with)
        if not self._is_there(task, record):
            embedding.save(self.files.embedding_of(task.name))
        self.files.forget_failure(task.name)
        self.files.keep_record(task.name, record)
        self.told.ended(task.name, len(task), None)

    def fail(self, task: Task, error: Exception) -> None:
        """Write down why a task has no embedding; raise where that is no fault of the task."""
        if isinstance(error, ClusterError):
            raise error
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            why = f"build_library: {task.name!r} found a full disk ({error.strerror}); the same call continues"
            raise OSError(error.errno, why) from error
        why = f"{type(error).__name__}: {error}"
        self.files.fail(task.name, len(task), why)
        self.told.ended(task.name, len(task), why)

    def _is_there(self, task: Task, record: str | None) -> bool:
        """Whether the embedding of these images is in the library, sound."""
        try:
            embedding = Embedding.load(self.files.embedding_of(task.name))
        except ValueError:  # nothing there, or damaged
            return False
        same = embedding.name == task.name and same_digest(embedding.task_digest, digest_of_record(record))
        return same and not self.made_with.changes(embedding)
