"""Distances between embeddings, their error bars, and which embeddings compare."""

from .comparable import check_comparable
from .distance import cross_distances, distance_matrix
from .rules import DistanceName, SymDistanceName
from .uncertainty import neighbour_ranks, norm_with_error, relative_error, with_error

__all__ = [
    "DistanceName",
    "SymDistanceName",
    "check_comparable",
    "cross_distances",
    "distance_matrix",
    "neighbour_ranks",
    "norm_with_error",
    "relative_error",
    "with_error",
]
