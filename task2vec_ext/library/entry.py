"""What a library knows of one task."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..embedding import Embedding

State = Literal["done", "failed", "damaged"]


class Entry(NamedTuple):
    """What a library knows of one task.

    Args:
        name: What people call it; of a damaged file, the file's name.
        file: Its file in the library's folder, such as ``embeddings/birds-0123456789ab.safetensors``.
        state: ``"done"``; ``"failed"``, or ``"damaged"``: the file cannot be used, and `error` says why.
        images: How many the task has; None where that is unknown.
        digest: `Task.digest` of the images that were embedded.
        num_samples: Images that the Fisher is the mean over.
        num_skipped: Images that could not be read.
        num_outputs: C.
        score: Of the head, in [0, 1].
        norm: ‖F‖₁, nats² per weight².
        error: Why it failed.
    """

    name: str
    file: str
    state: State
    images: int | None = None
    digest: str | None = None
    num_samples: int | None = None
    num_skipped: int | None = None
    num_outputs: int | None = None
    score: float | None = None
    norm: float | None = None
    error: str | None = None

    @classmethod
    def of(cls, embedding: Embedding, file: str) -> Entry:
        """Return the entry of an embedding that was read from a file."""
        drawn = embedding.settings.num_samples is not None or embedding.settings.rel_error is not None
        known = None if drawn else embedding.num_samples + embedding.num_skipped  # of files before 0.3
        return cls(
            name=embedding.name,
            file=file,
            state="done",
            images=known if embedding.num_images is None else embedding.num_images,
            digest=embedding.task_digest,
            num_samples=embedding.num_samples,
            num_skipped=embedding.num_skipped,
            num_outputs=embedding.head.num_outputs,
            score=embedding.head.best_score,
            norm=embedding.norm,
        )
