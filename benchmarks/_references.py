"""How the distance relative to a library depends on what its reference is the mean of."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from _library import FLOOR, Embedded, retrieval
from _tasks import domain
from torch import Tensor

from task2vec_ext import Reference, Task2VecWarning, distance_matrix

SIZES = (3, 5, 8, 10, 20, 45)
"""Tasks of a reference, drawn from the other half."""
DRAWS = 20
LIBRARIES = (5, 10, 20)
"""Tasks of a small library with a reference of its own."""


def relative(tasks: Embedded, others: Embedded | None = None, rows: list[int] | None = None) -> Tensor:
    """Return the distances ``[T, T]`` of tasks, relative to themselves or to some of the others."""
    known = (others or tasks).embeddings
    with warnings.catch_warnings(action="ignore", category=Task2VecWarning):
        reference = Reference.of(known if rows is None else [known[i] for i in rows])
    return distance_matrix(tasks.embeddings, "library_correlation", reference=reference)


def by_reference(tasks: Embedded, others: Embedded) -> dict[str, Any]:
    """Return how well the tasks of each domain are found, by what the reference is made of."""
    both = Embedded([*tasks.tasks, *others.tasks], [*tasks.embeddings, *others.embeddings], tasks.features)
    domains = [domain(task) for task in others.tasks]
    of_domains = {d: [i for i, own in enumerate(domains) if own == d] for d in dict.fromkeys(domains)}
    random = torch.Generator().manual_seed(0)
    draws = {n: [torch.randperm(len(domains), generator=random)[:n].tolist() for _ in range(DRAWS)] for n in SIZES}
    return {
        "own tasks": _measures(tasks, [relative(tasks)]),
        "the other half": _measures(tasks, [relative(tasks, others)]),
        "both halves": _measures(tasks, [relative(tasks, both)]),
        "without the two compared": _measures(tasks, [without_both(tasks)]),
        **{
            f"{n} of the other half": _measures(tasks, [relative(tasks, others, rows) for rows in some])
            for n, some in draws.items()
        },
        **{
            f"{name}, {len(rows)}": _measures(tasks, [relative(tasks, others, rows)])
            for name, rows in of_domains.items()
            if len(rows) >= 3
        },
    }


def without_both(tasks: Embedded) -> Tensor:
    """Return every distance relative to the other T − 2 tasks: no task is part of what it is compared with."""
    x = (tasks.fisher + FLOOR).log()
    distances = torch.zeros(len(x), len(x), dtype=torch.float64)
    for a in range(len(x)):
        mean = (x.sum(0) - x[a] - x) / (len(x) - 2)  # [T, K], without a and each b
        ours, theirs = (one - one.mean(1, keepdim=True) for one in (x[a] - mean, x - mean))
        distances[a] = 1 - torch.cosine_similarity(ours, theirs, dim=1)
        distances[a, a] = 0
    return distances


def small_libraries(tasks: Embedded) -> dict[str, Any]:
    """Return the mean average precision within random libraries of a few tasks, each its own reference."""
    random, found = torch.Generator().manual_seed(1), {}
    matrices = {"sym": distance_matrix(tasks.embeddings, "sym"), "reference of all tasks": relative(tasks)}
    for n in LIBRARIES:
        rows: list[list[float]] = []
        while len(rows) < 100:
            chosen = torch.randperm(len(tasks.tasks), generator=random)[:n].tolist()
            some = tasks.subset([tasks.names[i] for i in chosen])
            each = [matrix[chosen][:, chosen] for matrix in matrices.values()]
            means = [float(retrieval(one, some.tasks).precision.nanmean()) for one in (*each, relative(some))]
            if means[0] == means[0]:  # else no task has another one of its domain
                rows.append(means)
        names = (*matrices, "reference of its own")
        found[str(n)] = dict(zip(names, torch.tensor(rows).mean(0).tolist(), strict=True))
    return found


def _measures(tasks: Embedded, matrices: list[Tensor]) -> dict[str, Any]:
    """Return means over some references, and of how many tasks the nearest is that by the tasks' own reference."""
    found = [retrieval(one, tasks.tasks) for one in matrices]
    precision = torch.stack([one.precision.nanmean() for one in found])
    nearest = [one.clone().fill_diagonal_(torch.inf).argmin(1) for one in (relative(tasks), *matrices)]
    same = torch.stack([(one == nearest[0]).double().mean() for one in nearest[1:]])
    return {
        "own_domain": float(torch.stack([one.own.nanmean() for one in found]).mean()),
        "mean_average_precision": float(precision.mean()),
        "least": float(precision.min()),
        "same_nearest": float(same.mean()),
    }
