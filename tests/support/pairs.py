"""Rows that d_sym is tried on, and the printed formula for each pair in NumPy."""

import numpy as np
import torch

FAST = 1e-6  # what the float32 pass promises; measured worst 7e-7, with equal ratios
EXACT = 1e-12  # float64 sums of at most a thousand terms of size 1


def loop(a, b) -> torch.Tensor:
    """The printed formula, pair by pair; a filter that is dead in both counts for nothing."""

    def distance(x, y):
        live = x + y > 0
        r, q = x[live] / (x + y)[live], y[live] / (x + y)[live]
        return 1 - r @ q / np.sqrt((r @ r) * (q @ q))

    return torch.tensor([[distance(x, y) for y in b.numpy()] for x in a.numpy()], dtype=torch.float64)


def rows(T, K, *, spread=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(spread * torch.randn(T, K, generator=generator, dtype=torch.float64))


def alive(T, K, share, seed=1):
    return torch.rand(T, K, generator=torch.Generator().manual_seed(seed)) < share


def hard(name: str) -> torch.Tensor:
    """Rows that would break a careless float32."""
    T, K = 9, 131
    values = rows(T, K)
    steps = torch.arange(T, dtype=torch.float64)[:, None]
    return {
        "plain": lambda: values,
        "scales-1e-30-to-1e30": lambda: values * 10 ** (7.5 * (steps - 4)),
        "scales-within-float32": lambda: values * 10 ** (2.5 * (steps - 4)),
        "one-common-scale-1e-30": lambda: values * 1e-30,
        "one-common-scale-1e30": lambda: values * 1e30,
        "filters-of-1e-30-to-1e30": lambda: rows(T, K, spread=25.0).clamp(1e-30, 1e30),
        "wide-filters-within-float32": lambda: rows(T, K, spread=8.0).clamp(1e-10, 1e10),
        "zeros-on-one-side": lambda: values * alive(T, K, 0.7),
        "zeros-on-both-sides": lambda: values * alive(1, K, 0.5),
        "zeros-and-scales": lambda: values * alive(T, K, 0.6) * 10 ** (1.5 * (steps - 4)),
        "hardly-a-filter-alive": lambda: torch.where(alive(T, K, 0.05) | (torch.arange(K) == 5), values, 0.0),
        "equal-ratios": lambda: torch.where(torch.arange(K) % 2 == 0, 1.0, 3.0) ** (1 + steps / 4),
        "two-values": lambda: torch.where(torch.arange(K) % (steps + 2) == 0, 1.0, 1 / 3).double(),
        "nearly-equal": lambda: values[:1] * rows(T, K, spread=1e-3),
        "disjoint": lambda: values * (torch.arange(K) % T == steps),
    }[name]()


HARD = [
    "plain",
    "scales-1e-30-to-1e30",
    "scales-within-float32",
    "one-common-scale-1e-30",
    "one-common-scale-1e30",
    "filters-of-1e-30-to-1e30",
    "wide-filters-within-float32",
    "zeros-on-one-side",
    "zeros-on-both-sides",
    "zeros-and-scales",
    "hardly-a-filter-alive",
    "equal-ratios",
    "two-values",
    "nearly-equal",
    "disjoint",
]
