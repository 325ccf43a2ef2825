"""The 95 % intervals of the norm and of d_sym, for rows that no `Embedding` was made of."""

from __future__ import annotations

import torch
from torch import Tensor

from task2vec_ext.jackknife import Estimate, Groups, estimate, group_sizes, halved, num_groups, side
from task2vec_ext.kernels.pairwise import sym_distances


def grouped(rows: Tensor) -> Groups:
    """Return the groups of images, each row ``[N, K]`` the Fisher of an image; heads are held fixed."""
    count = num_groups(len(rows))
    means = torch.stack([rows[g::count].mean(0) for g in range(count)])
    return Groups(rows.double().mean(0), means.float(), group_sizes(len(rows), count))


def norm(a: Groups) -> Estimate:
    """Return the norm of an embedding, as `task2vec_ext.distance.norm_with_error` does."""
    value = a.mean.sum()
    return estimate(value, [side(value, a.without().sum(1), a.sizes)], value, log=True)


def d_sym(a: Groups, b: Groups) -> Estimate:
    """Return the distance of two embeddings, as ``distance_matrix(…, with_error=True)`` does."""
    value = sym_distances(a.mean[None], b.mean[None])[0, 0]
    sides = [
        side(value, sym_distances(one.without(), other.mean[None])[:, 0], one.sizes) for one, other in ((a, b), (b, a))
    ]
    halves = [sym_distances(x[None], y[None])[0, 0] for x, y in halved([a, b])]
    return estimate(value, sides, torch.stack(halves).mean())
