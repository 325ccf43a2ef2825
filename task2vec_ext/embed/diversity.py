"""Diversity of a task: the mean distance between embeddings of its random batches.

Source: Lee, Miranda, Sundar, Koyejo, Beyond Scale: the Diversity Coefficient as a Data Quality Metric, 2023
(arXiv 2306.13840), with d_sym for their cosine distance between Task2Vec embeddings of batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from ..data import as_task, check_labels, read_labels
from ..distance.distance import cross_distances, distance_matrix
from ..jackknife import Estimate, estimate, side
from ..probe.load import load_probe
from .fisher_embed import fisher_embed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..data import Task, TaskSource
    from ..distance.reference import Reference
    from ..embedding import Embedding
    from ..words import DistanceName

_FEWEST = 4
"""Batches. With three, two degrees of freedom make the interval more than twice as wide as many would."""


def embed_batches(
    task: TaskSource,
    probe: Any = "resnet34",
    *,
    num_batches: int = 16,
    images: int = 64,
    seed: int = 0,
    name: str | None = None,
    **options: Any,
) -> list[Embedding]:
    """Return the embeddings of disjoint random batches of a task; the head is fitted to each.

    Args:
        task: As for `fisher_embed`.
        probe: As for `fisher_embed`.
        num_batches: Number of batches.
        images: Images in each batch, drawn without regard to class. A batch's head has only the classes that are in it.
        seed: Seed of the draw and of `fisher_embed`.
        name: Name of the task.
        **options: Options of `fisher_embed`, except those of the probe (use `load_probe` for them).

    Returns:
        `num_batches` embeddings.

    Raises:
        ValueError: If the task has too few images, or a batch a single class.
    """
    source = as_task(task, name=name)
    labels = read_labels(source)
    check_labels(labels, who="embed_batches")
    if num_batches < 1 or images < 2 or num_batches * images > len(source):
        raise ValueError(
            f"embed_batches: expected at least {num_batches} × {images} images for disjoint batches, got "
            f"{len(source)} in {source.name!r}; take fewer or smaller batches."
        )
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    batches = order[: num_batches * images].reshape(num_batches, images)
    for number, batch in enumerate(batches):
        if len(labels[batch].unique()) < 2:
            raise ValueError(
                f"embed_batches: expected two classes or more in every batch, got one in batch {number} of "
                f"{source.name!r}; take larger batches."
            )
    net = load_probe(probe)
    return [
        fisher_embed(_Batch(source, batch, labels[batch]), net, seed=seed, name=f"{source.name} {number}", **options)
        for number, batch in enumerate(batches)
    ]


class _Batch(Dataset[tuple[Any, int]]):
    """Some images of a task, their classes numbered without gaps."""

    def __init__(self, task: Task, indices: Tensor, labels: Tensor) -> None:
        self.task, self.indices = task, indices.tolist()
        self.targets = labels.unique(return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.task.item(self.indices[index])[0], int(self.targets[index])


def diversity(
    batches: Sequence[Embedding], distance: DistanceName = "sym", *, reference: Reference | None = None
) -> Estimate:
    """Return the mean distance between batches of one task, with an interval.

    Args:
        batches: M ≥ 4 embeddings of disjoint random batches of one size (`embed_batches`).
        distance: A symmetric distance.
        reference: As for `distance_matrix`.

    Returns:
        Scalars. Pairs share batches and are not independent, so the standard error is from a jackknife over batches,
        which leaves out each batch with all its pairs; it has M − 1 degrees of freedom.

    Raises:
        ValueError: If there are too few batches.

    Note:
        Noise within batches adds to the diversity, so compare only diversities of the same batch size.
    """
    _check_count(batches, "diversity")
    matrix = distance_matrix(batches, distance, reference=reference)
    M = len(batches)
    total, each = matrix.sum(), matrix.sum(0) + matrix.sum(1)
    value = total / (M * (M - 1))
    without = (total - each) / ((M - 1) * (M - 2))
    return estimate(value, [side(value, without, torch.ones(M).double())], value)


def cross_diversity(
    a: Sequence[Embedding],
    b: Sequence[Embedding],
    distance: DistanceName = "sym",
    *,
    reference: Reference | None = None,
) -> Estimate:
    """Return the mean distance between batches of one task and batches of another, with an interval.

    Args:
        a: M ≥ 4 embeddings of disjoint random batches of one task.
        b: The same of another task, of the same batch size.
        distance: Which distance; row = source = `a`.
        reference: As for `distance_matrix`.

    Returns:
        Scalars; the standard error is from a jackknife over the batches of both tasks.

    Raises:
        ValueError: If there are too few batches.
    """
    _check_count(a, "cross_diversity")
    _check_count(b, "cross_diversity")
    matrix = cross_distances(a, b, distance, reference=reference)
    value, sides = matrix.mean(), []
    for means in (matrix.mean(1), matrix.mean(0)):
        M = len(means)
        sides.append(side(value, (M * value - means) / (M - 1), torch.ones(M).double()))
    return estimate(value, sides, value)


def _check_count(batches: Sequence[Embedding], who: str) -> None:
    if len(batches) < _FEWEST:
        raise ValueError(f"{who}: expected {_FEWEST} batches or more, got {len(batches)}; embed more of them.")
