"""The nearest of very many tasks: exactly, or among those whose sketches are near.

With Δ = log F_a − log F_b, d_sym ≈ ½·Var(Δ) over the filters where that is small, and Var(Δ) is the squared Euclidean
distance of the centred log F, divided by K. Dead filters have no logarithm: F is scaled to unit mean and a floor added.
A sketch is a random projection of that, which keeps distances nearly (Johnson and Lindenstrauss).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..distance import Reference, cross_distances
from ..words import SymDistanceName

EXACT_UP_TO = 100_000
"""Up to this many tasks all are compared."""

CANDIDATES = 1000
"""Per query. 300 candidates held the ten nearest of 20,000 tasks for all of 20 queries (benchmarks/nearest.py)."""

SKETCH = 128
"""Numbers of a sketch; 64 to 512 find the same tasks (measured around 43 real ones)."""

_FLOOR = 0.01
"""In units of the mean Fisher. Values from 0.001 to 0.1 find the same tasks (measured on 35 real tasks)."""


class Found(NamedTuple):
    """The nearest tasks of a query."""

    distances: Tensor  # [k] float64, ascending
    numbers: Tensor  # [k] int64


def nearest(
    blocks: Iterable[tuple[Tensor, Tensor]],
    query: Tensor,
    k: int,
    distance: SymDistanceName = "sym",
    reference: Reference | None = None,
) -> Found:
    """Return the at most k rows that are nearest to a query.

    Args:
        blocks: Numbers ``[b]`` and rows ``[b, K]`` of some tasks at a time, none all zero.
        query: ``[K]`` float64, not all zero.
        k: How many.
        distance: Which distance.
        reference: As for `distance_matrix`.

    Returns:
        The nearest; equal distances are in the order of their numbers.
    """
    best = Found(query.new_empty(0), torch.empty(0, dtype=torch.int64))
    for numbers, rows in blocks:
        best = _least(best, cross_distances(query[None], rows, distance, reference=reference)[0], numbers, k)
    return best


def candidates(blocks: Iterable[tuple[Tensor, Tensor]], query: Tensor) -> Tensor:
    """Return the `CANDIDATES` numbers of the tasks with the nearest sketches, ascending; `blocks` as for `nearest`."""
    wanted = sketch(query[None])
    best = Found(wanted.new_empty(0), torch.empty(0, dtype=torch.int64))
    for numbers, sketches in blocks:
        best = _least(best, (sketches - wanted).square().sum(1), numbers, CANDIDATES)
    return best.numbers.sort().values


def sketch(fisher: Tensor) -> Tensor:
    """Return the sketches ``[n, SKETCH]`` float32 of F ``[n, K]`` float64."""
    scaled = fisher / fisher.mean(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    logarithms = (scaled + _FLOOR).log()
    return (logarithms - logarithms.mean(1, keepdim=True)).float() @ _projection(fisher.shape[1])


@lru_cache(1)
def _projection(filters: int) -> Tensor:
    """Random signs ``[K, SKETCH]``, scaled so that squared distances keep their size divided by K."""
    random = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (filters, SKETCH), generator=random, dtype=torch.int8)
    return (2.0 * signs - 1) / (SKETCH * filters) ** 0.5


def _least(best: Found, distances: Tensor, numbers: Tensor, k: int) -> Found:
    distances, numbers = torch.cat([best.distances, distances]), torch.cat([best.numbers, numbers])
    by_number = numbers.argsort()
    order = by_number[distances[by_number].sort(stable=True).indices[:k]]
    return Found(distances[order], numbers[order])
