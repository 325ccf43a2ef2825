"""The nearest task of each, read off a distance matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def nearest(distances: Tensor) -> list[tuple[int, float]]:
    """Return, for every column (target) of ``[T, T]``, the nearest other row (source) and its distance."""
    values, indices = distances.clone().fill_diagonal_(float("inf")).min(0)
    return list(zip(indices.tolist(), values.tolist(), strict=True))
