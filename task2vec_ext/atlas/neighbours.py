"""The nearest tasks of each task, and how sure their distances are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..distance.rules import RULES, Pairs, Tasks, Vectors
from ..jackknife import Estimate, estimate, halved, side

if TYPE_CHECKING:
    from torch import Tensor

    from ..distance.rules import SymDistanceName
    from ..embedding import Embedding

_KEPT = 32
"""Tasks whose resampled Fishers are in memory: 6.5 MB each at 8,512 filters."""


class Near(NamedTuple):
    """A task near another.

    Args:
        task: Which.
        distance: To it.
        low: End of the 95 % interval, or None where one of the two has no error bars.
        high: The other.
    """

    task: int
    distance: float
    low: float | None
    high: float | None


class Resampled(NamedTuple):
    """A task's Fisher from all of its images, without each group of them, and from halves of them.

    Args:
        sizes: Of the groups, ``[G]``.
        rows: ``[1 + G + 2·(G − 1), K]``, in that order, as the distance takes them.
    """

    sizes: Tensor
    rows: Vectors

    @classmethod
    def of(cls, embedding: Embedding, distance: SymDistanceName) -> Resampled | None:
        """Return what a task's distances need, or None where it has no error bars."""
        if embedding.group_means is None:
            return None
        groups = embedding.groups
        halves = [half for (half,) in halved([groups])]
        fisher = torch.cat([groups.mean[None], groups.without(), torch.stack(halves)])
        return cls(groups.sizes, RULES[distance].prepare(Tasks(fisher, torch.empty(0), [], "atlas")))

    def pick(self, rows: Tensor | slice) -> Vectors:
        """Return some of the rows."""
        return Vectors(self.rows.values[rows], self.rows.exponent[rows])


def nearest_tasks(
    embeddings: Sequence[Embedding], distances: Tensor, k: int, distance: SymDistanceName, order: Sequence[int]
) -> Iterator[tuple[int, list[Near]]]:
    """Yield each task and its nearest ones.

    Args:
        embeddings: T of them.
        distances: ``[T, T]``, of that distance.
        k: How many.
        distance: ``"sym"`` or ``"sym_scaled"``.
        order: In which to go through the tasks; where neighbours in it are near, what they need is still in memory.

    Yields:
        The task, and at most k others, nearest first.
    """
    T = len(embeddings)

    @lru_cache(_KEPT)
    def resampled(i: int) -> Resampled | None:
        return Resampled.of(embeddings[i], distance)

    @cache
    def limits(i: int, j: int) -> tuple[float, float] | tuple[None, None]:
        a, b = resampled(i), resampled(j)
        if a is None or b is None:
            return None, None
        low, high = distance_with_error(a, b, distance).interval()
        return max(0.0, float(low)), float(high)  # d_sym is not negative

    for i in order:
        row = distances[i].clone()
        row[i] = torch.inf
        ranked = row.sort(stable=True).indices[: min(k, T - 1)].tolist()
        yield i, [Near(j, float(distances[i, j]), *limits(min(i, j), max(i, j))) for j in ranked]


def distance_with_error(a: Resampled, b: Resampled, distance: SymDistanceName) -> Estimate:
    """Return one distance as ``distance_matrix(…, with_error=True)`` has it, without all the others.

    Args:
        a: A task.
        b: Another.
        distance: ``"sym"`` or ``"sym_scaled"``.

    Returns:
        Scalars.
    """
    whole = slice(0, 1)
    value = _distances(a.pick(whole), b.pick(whole), distance)[0]
    sides = [
        side(value, _distances(one.pick(slice(1, 1 + len(one.sizes))), other.pick(whole), distance), one.sizes)
        for one, other in ((a, b), (b, a))
    ]
    first = [1 + len(one.sizes) for one in (a, b)]
    halves = [len(one.rows.values) - start for one, start in zip((a, b), first, strict=True)]
    turns = torch.arange(max(halves))  # the task of fewer groups has its halves taken again
    ours, theirs = (one.pick(start + turns % n) for one, start, n in zip((a, b), first, halves, strict=True))
    return estimate(value, sides, _distances(ours, theirs, distance).mean())


def _distances(a: Vectors, b: Vectors, distance: SymDistanceName) -> Tensor:
    """Distances of rows to rows, ``[B]``; b may be one for all."""
    rule, gap = RULES[distance], (a.exponent - b.exponent)[:, None].double()
    scales = (torch.exp2(gap.clamp(max=0)), torch.exp2((-gap).clamp(max=0)))
    return rule.finish(torch.stack(rule.sums(Pairs(a.values, b.values, *scales))), a.values.shape[1])
