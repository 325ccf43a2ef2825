"""The nearest tasks of each task, with the intervals of their distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..distance.reference import Reference
from ..distance.rules import RULES, Pairs, Tasks, Vectors
from ..embedding import Embedding
from ..jackknife import Estimate, estimate, halved, side
from ..words import SymDistanceName

_KEPT = 32  # tasks whose resampled Fishers stay in memory: 6.5 MB each at 8,512 filters


class Near(NamedTuple):
    """A neighbour; ``low`` and ``high`` are the distance's 95 % interval, or None without error bars."""

    task: int
    distance: float
    low: float | None
    high: float | None


class Resampled(NamedTuple):
    """A task's Fisher of all images, without each group of them, and of halves of them."""

    sizes: Tensor  # [G], images in each group
    whole: Vectors  # [1, K], prepared for the distance
    without: Vectors  # [G, K]
    halves: Vectors  # [2·(G − 1), K]

    @classmethod
    def of(cls, embedding: Embedding, distance: SymDistanceName, reference: Reference | None) -> Resampled | None:
        """Return an embedding's resampled Fishers, or None without error bars."""
        if embedding.group_means is None:
            return None
        groups = embedding.groups
        halves = [half for (half,) in halved([groups])]
        fisher = torch.cat([groups.mean[None], groups.without(), torch.stack(halves)])
        tasks = Tasks(fisher, torch.empty(0), [embedding.name] * len(fisher), "atlas", reference)
        rows, first = RULES[distance].prepare(tasks), 1 + len(groups.sizes)
        return cls(groups.sizes, *(rows.rows(slice(*ends)) for ends in ((0, 1), (1, first), (first, None))))


def nearest_tasks(
    embeddings: Sequence[Embedding],
    distances: Tensor,
    k: int,
    distance: SymDistanceName,
    order: Sequence[int],
    reference: Reference | None = None,
) -> Iterator[tuple[int, list[Near]]]:
    """Yield each task in `order` with its at most k nearest ones, nearest first.

    Where near tasks follow each other in `order`, their resampled Fishers are still in memory.
    """

    @lru_cache(_KEPT)
    def resampled(i: int) -> Resampled | None:
        return Resampled.of(embeddings[i], distance, reference)

    @cache
    def interval(i: int, j: int) -> tuple[float, float] | tuple[None, None]:
        a, b = resampled(i), resampled(j)
        if a is None or b is None:
            return None, None
        low, high = distance_with_error(a, b, distance).interval()
        return max(0.0, float(low)), float(high)  # no distance is negative

    for i in order:
        row = distances[i].clone()
        row[i] = torch.inf
        ranked = row.sort(stable=True).indices[: min(k, len(embeddings) - 1)].tolist()
        yield i, [Near(j, float(distances[i, j]), *interval(min(i, j), max(i, j))) for j in ranked]


def distance_with_error(a: Resampled, b: Resampled, distance: SymDistanceName) -> Estimate:
    """Return the entry of two tasks in ``distance_matrix(…, with_error=True)``, without computing the others."""
    value = _distances(a.whole, b.whole, distance)[0]
    sides = [side(value, _distances(x.without, y.whole, distance), x.sizes) for x, y in ((a, b), (b, a))]
    turns = torch.arange(max(len(a.halves.values), len(b.halves.values)))  # fewer halves are used again in turn
    ours, theirs = (Vectors(*(field[turns % len(x.halves.values)] for field in x.halves)) for x in (a, b))
    return estimate(value, sides, _distances(ours, theirs, distance).mean())


def _distances(a: Vectors, b: Vectors, distance: SymDistanceName) -> Tensor:
    """Return the distances of B rows to B rows, or to one, ``[B]``."""
    rule, gap = RULES[distance], (a.exponent - b.exponent)[:, None].double()
    scales = (torch.exp2(gap.clamp(max=0)), torch.exp2((-gap).clamp(max=0)))
    return rule.finish(torch.stack(rule.sums(Pairs(a.values, b.values, *scales))), a.values.shape[1])
