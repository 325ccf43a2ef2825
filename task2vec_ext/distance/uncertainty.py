"""Error bars of an embedding, of its norm, of any number computed from embeddings, and of the order of neighbours.

Distances have theirs from ``distance_matrix(…, with_error=True)``; `jackknife` says how all of them are made.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..jackknife import Estimate, covariance, estimate, halved, side, t_quantile
from .distance import cross_distances, distance_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..embedding import Embedding
    from ..words import DistanceName
    from .reference import Reference


def relative_error(embedding: Embedding) -> float:
    """Return the embedding's relative standard error, ``‖SE‖₂ / ‖F‖₂``.

    Args:
        embedding: An embedding with error bars.

    Returns:
        An estimate of ``‖F − F_true‖₂ / ‖F_true‖₂`` (root mean square); F_true is the mean over infinitely many images,
        under the same heads: what ``fisher_embed(rel_error=…)`` stops by.

    Raises:
        ValueError: If the embedding has no error bars.
    """
    return embedding.groups.relative_error()


def norm_with_error(embedding: Embedding) -> Estimate:
    """Return the norm ``‖F‖₁``, the task's complexity, with its error.

    Args:
        embedding: An embedding with error bars.

    Returns:
        Scalars, nats² per weight². The interval is symmetric on the log scale, which had the better measured coverage.

    Raises:
        ValueError: If the embedding has no error bars.
    """
    return with_error(lambda fisher: fisher.sum(), embedding, log=True)


def with_error(statistic: Callable[..., Tensor], *embeddings: Embedding, log: bool = False) -> Estimate:
    """Return a statistic of one or several embeddings with its error.

    Args:
        statistic: A function of one float64 ``[K]`` per embedding that returns a tensor of any shape. It must be
            smooth (a rank or a minimum is not: see `neighbour_ranks`).
        *embeddings: Embeddings with error bars, of tasks that do not share images.
        log: Make intervals symmetric on the log scale, for positive values with a relative error.

    Returns:
        The statistic with standard error, bias and intervals.

    Raises:
        ValueError: If an embedding has no error bars.
    """

    def of(*fishers: Tensor) -> Tensor:
        return torch.as_tensor(statistic(*fishers), dtype=torch.float64)

    groups = [embedding.groups for embedding in embeddings]
    means = [group.mean for group in groups]
    value = of(*means)
    sides = []
    for i, group in enumerate(groups):
        without = [of(*means[:i], left, *means[i + 1 :]) for left in group.without()]
        sides.append(side(value, torch.stack(without), group.sizes))
    of_halves = torch.stack([of(*halves) for halves in halved(groups)])
    return estimate(value, sides, of_halves.mean(0), log=log)


class Ranks(NamedTuple):
    """The rank of every neighbour, and the interval of its true rank."""

    rank: Tensor  # [T] int64: 1 for the nearest; 0 for the target itself
    low: Tensor  # [T] int64, best rank that is compatible with the images
    high: Tensor  # [T] int64, worst rank


def neighbour_ranks(
    embeddings: Sequence[Embedding],
    target: int,
    distance: DistanceName = "sym",
    *,
    alpha: float = 0.15,
    reference: Reference | None = None,
    confidence: float = 0.95,
) -> Ranks:
    """Return every embedding's rank among the neighbours of one, with an interval.

    A rank is discrete, so a standard error does not describe it. Neighbours are ranked by their bias-corrected
    distances. The order of two neighbours is certain if their distances differ by more than the error of the
    difference allows. The best rank of a neighbour is just after all that are certainly nearer, and its worst rank
    just before all that are certainly farther.

    Args:
        embeddings: T embeddings with error bars that can be compared.
        target: Index of the task whose neighbours are ranked, 0…T−1; the others are sources (experts, for ``asym``).
        distance: See `distance_matrix`.
        alpha: See `distance_matrix`.
        reference: See `distance_matrix`.
        confidence: Probability that a neighbour's interval contains its true rank (Bonferroni over the others).

    Returns:
        Ranks and their limits, each ``[T]``.

    Raises:
        ValueError: If an embedding has no error bars, or `target` is not an index.
    """
    who, T = "neighbour_ranks", len(embeddings)
    if not 0 <= target < T:
        raise ValueError(f"{who}: expected a target in 0…{T - 1}, got {target}; it is an index into the list.")
    found = distance_matrix(embeddings, distance, alpha=alpha, reference=reference, with_error=True)
    distances, squares = found.corrected[:, target], found.standard_error[:, target].square()
    groups = embeddings[target].groups
    left = [dataclasses.replace(embeddings[target], fisher=row, group_means=None) for row in groups.without()]
    without = cross_distances(embeddings, left, distance, alpha=alpha, reference=reference).T  # [G, T]
    # The target's noise moves all its distances alike, which leaves their order alone.
    shared = covariance(found.value[:, target], without, groups.sizes)
    errors = (squares[:, None] + squares - 2 * shared).clamp_(min=0).sqrt_()
    freedom = found.freedom[:, target].clamp(max=found.freedom[target, :].min())
    half = t_quantile(1 - (1 - confidence) / 2 / max(T - 2, 1), torch.minimum(freedom[:, None], freedom)) * errors
    ahead = distances[:, None] - distances  # [i, j] how much farther i is than j
    others = torch.arange(T) != target
    places = [(others & is_behind).sum(1) + 1 for is_behind in (ahead > 0, ahead > half)]
    high = T - 1 - (others & (ahead < -half)).sum(1)
    return Ranks(*(place * others for place in (*places, high)))
