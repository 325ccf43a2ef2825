"""Candidates for the nearest among very many tasks: neighbours in the centred, floored log-Fisher, found by faiss.

With Δ = log F_a − log F_b, d_sym ≈ ½·Var(Δ) over the filters where that is small, and Var(Δ) is the squared Euclidean
distance of the centred log F, divided by K. Dead filters have no logarithm: F is scaled to unit mean and a floor added.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._util.atomic import atomic_path
from .matrix import Matrix

EXACT_UP_TO = 100_000
"""Up to this many tasks all are compared."""

CANDIDATES = 1000
"""Per query. 300 candidates held the ten nearest of 200,000 tasks for all of 30 queries (benchmarks/nearest.py)."""

FLOOR = 0.01
"""In units of the mean Fisher. Values from 0.001 to 0.1 find the same tasks (measured on 35 real tasks)."""

_DIMENSIONS = 256  # principal components that are searched: tasks differ in far fewer directions than filters
_TRAINING = 4096  # tasks, spread over the library, that the components are found from


def shortlist(path: Path, matrix: Matrix, query: Tensor, slots: Tensor) -> Tensor:
    """Return those of the ascending `slots` that are worth comparing exactly with a query ``[K]`` float64, ascending.

    They are the `CANDIDATES` nearest in log-Fisher, and those that came since the faiss index at `path` was made; all
    where they are few, or faiss is not installed. The index is made (anew) where it lacks more than `EXACT_UP_TO`.
    """
    if len(slots) <= EXACT_UP_TO or importlib.util.find_spec("faiss") is None:
        return slots
    import faiss

    try:
        index = faiss.read_index(str(path)) if path.is_file() else None
    except RuntimeError:  # damaged: it is made again, as is one that was lost
        index = None
    new = slots if index is None else slots[~torch.isin(slots, torch.from_numpy(faiss.vector_to_array(index.id_map)))]
    if len(new) > EXACT_UP_TO:
        index, new = build(matrix, slots), slots[:0]
        with atomic_path(path) as temporary:
            faiss.write_index(index, str(temporary))
    assert index is not None  # or all were new
    _, found = index.search(features(query[None]).numpy(), CANDIDATES)
    # The index may hold tasks that were removed since, and gives −1 where it holds too few.
    near = torch.from_numpy(found[0])
    return torch.cat([near[torch.isin(near, slots)], new]).unique()


def features(fisher: Tensor) -> Tensor:
    """Return the centred logarithm of F ``[n, K]``, no row all zero, scaled to unit mean plus `FLOOR`, in float32."""
    logarithms = (fisher / fisher.mean(1, keepdim=True) + FLOOR).log()
    return (logarithms - logarithms.mean(1, keepdim=True)).float()


def build(matrix: Matrix, slots: Tensor) -> Any:
    """Return a faiss index of the rows `slots`, ascending, reduced to their principal components."""
    import faiss

    sample = slots[:: max(1, len(slots) // _TRAINING)]
    training = torch.cat([features(rows) for _, rows in matrix.blocks(sample)])
    dimensions = min(_DIMENSIONS, matrix.filters, len(sample))
    reduced = faiss.PCAMatrix(matrix.filters, dimensions)
    reduced.train(training.numpy())
    index = faiss.IndexIDMap2(faiss.IndexPreTransform(reduced, faiss.IndexFlatL2(dimensions)))
    for some, rows in matrix.blocks(slots):
        index.add_with_ids(features(rows).numpy(), some.numpy())
    return index
