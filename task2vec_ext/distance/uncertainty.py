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
    from .rules import DistanceName


def relative_error(embedding: Embedding) -> float:
    """Return the embedding's relative standard error, ``‖SE‖₂ / ‖F‖₂``.

    Args:
        embedding: With error bars.

    Returns:
        What ``‖F − F_true‖₂ / ‖F_true‖₂`` is expected to be (root mean square), F_true of infinitely many images.

    Raises:
        ValueError: If it has no error bars.
    """
    return embedding.groups.relative_error()


def norm_with_error(embedding: Embedding) -> Estimate:
    """Return the norm ``‖F‖₁``, the task's complexity, with its error.

    Args:
        embedding: With error bars.

    Returns:
        Scalars, nats² per weight²; the interval is symmetric on the log scale, which measured coverage prefers.

    Raises:
        ValueError: If it has no error bars.
    """
    return with_error(lambda fisher: fisher.sum(), embedding, log=True)


def with_error(statistic: Callable[..., Tensor], *embeddings: Embedding, log: bool = False) -> Estimate:
    """Return a statistic of one or several embeddings with its error.

    Args:
        statistic: From one float64 ``[K]`` an embedding to a tensor of any shape; smooth in them (a rank or a minimum
            is not: see `neighbour_ranks`).
        *embeddings: With error bars; tasks that were sampled independently.
        log: Intervals symmetric on the log scale, for what is positive and varies in proportion.

    Returns:
        The statistic with standard error, bias and intervals.

    Raises:
        ValueError: If one has no error bars.
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
    """Who is the nearest, and between which places each may truly be."""

    rank: Tensor  # [T] int64: 1 for the nearest; 0 for the target itself
    low: Tensor  # [T] int64, best place the images allow
    high: Tensor  # [T] int64, worst


def neighbour_ranks(
    embeddings: Sequence[Embedding],
    target: int,
    distance: DistanceName = "sym",
    *,
    alpha: float = 0.15,
    confidence: float = 0.95,
) -> Ranks:
    """Return every embedding's rank among the neighbours of one, with an interval.

    A rank jumps, so no standard error describes it. Two neighbours' order is settled where their distances (less their
    bias, by which they are ranked) differ by more than that difference's own error; a neighbour's best place is one
    behind all that are surely nearer, its worst one before all that are surely farther.

    Args:
        embeddings: T with error bars, comparable.
        target: Whose neighbours, 0…T−1; the others are sources (experts, for ``asym``).
        distance: See `distance_matrix`.
        alpha: See `distance_matrix`.
        confidence: That a neighbour's interval holds its true rank (Bonferroni over the others).

    Returns:
        Ranks and their limits, each ``[T]``.

    Raises:
        ValueError: If one has no error bars, or there is no such target.
    """
    who, T = "neighbour_ranks", len(embeddings)
    if not 0 <= target < T:
        raise ValueError(f"{who}: expected a target in 0…{T - 1}, got {target}; it is a number in the list.")
    found = distance_matrix(embeddings, distance, alpha=alpha, with_error=True)
    distances, squares = found.corrected[:, target], found.standard_error[:, target].square()
    groups = embeddings[target].groups
    left = [dataclasses.replace(embeddings[target], fisher=row, group_means=None) for row in groups.without()]
    without = cross_distances(embeddings, left, distance, alpha=alpha).T  # [G, T]
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
