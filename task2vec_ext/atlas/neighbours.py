"""The nearest tasks of each task, and how sure their distances are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from .._kinds import RULES, Pairs, Tasks
from ..jackknife import Estimate, Groups, estimate, halved, side

if TYPE_CHECKING:
    from torch import Tensor

    from .._matrix import SymKind
    from ..embedding import Embedding


class Near(NamedTuple):
    """A task near another.

    Args:
        index: Which.
        distance: To it.
        low: End of the 95 % interval, or None where one of the two has no error bars.
        high: The other.
    """

    index: int
    distance: float
    low: float | None
    high: float | None


def nearest_tasks(
    embeddings: Sequence[Embedding], distances: Tensor, k: int, kind: SymKind, order: Sequence[int]
) -> Iterator[tuple[int, list[Near]]]:
    """Yield each task and its nearest ones.

    Args:
        embeddings: T of them.
        distances: ``[T, T]``, of that kind.
        k: How many.
        kind: ``"sym"`` or ``"sym_scaled"``.
        order: In which to go through the tasks; neighbours in it should be near, for the sake of what is kept in memory.

    Yields:
        The task, and at most k others, nearest first.
    """
    T = len(embeddings)

    @lru_cache(4 * T)
    def limits(i: int, j: int) -> tuple[float, float] | tuple[None, None]:
        a, b = embeddings[i], embeddings[j]
        if a.group_means is None or b.group_means is None:
            return None, None
        low, high = distance_with_error(a, b, kind).interval()
        return max(0.0, float(low)), float(high)  # d_sym is not negative

    for i in order:
        row = distances[i].clone()
        row[i] = torch.inf
        ranked = row.sort(stable=True).indices[: min(k, T - 1)].tolist()
        yield i, [Near(j, float(distances[i, j]), *limits(min(i, j), max(i, j))) for j in ranked]


def distance_with_error(a: Embedding, b: Embedding, kind: SymKind) -> Estimate:
    """Return one distance as ``distance_matrix(…, with_error=True)`` has it, without all the others.

    Args:
        a: A task with error bars.
        b: Another.
        kind: ``"sym"`` or ``"sym_scaled"``.

    Returns:
        Scalars.

    Raises:
        ValueError: One has no error bars.
    """
    groups = [Groups.of(item, "distance_with_error") for item in (a, b)]
    left = [group.without() for group in groups]
    halves = [torch.stack(rows) for rows in zip(*halved(groups), strict=True)]
    # One pass over all pairs: as they are, without each group of a, without each group of b, halves of both.
    counts = [1, len(left[0]), len(left[1]), len(halves[0])]
    ours = [groups[0].mean[None], left[0], groups[0].mean.expand_as(left[1]), halves[0]]
    theirs = [groups[1].mean[None], groups[1].mean.expand_as(left[0]), left[1], halves[1]]
    value, *without, of_halves = _aligned(torch.cat(ours), torch.cat(theirs), kind).split(counts)
    sides = [side(value[0], rows, group.sizes) for rows, group in zip(without, groups, strict=True)]
    return estimate(value[0], sides, of_halves.mean())


def _aligned(ours: Tensor, theirs: Tensor, kind: SymKind) -> Tensor:
    """Distances of rows to rows, ``[B, K]`` both: ``[B]``."""
    rule = RULES[kind]
    a, b = (rule.prepare(Tasks(rows, torch.empty(0), [], "distance_with_error")) for rows in (ours, theirs))
    gap = (a.exponent - b.exponent)[:, None]
    scales = [torch.exp2(sign * gap.double()).clamp(max=1.0) for sign in (1, -1)]
    return rule.finish(torch.stack(rule.sums(Pairs(a.values, b.values, *scales))), ours.shape[1])
