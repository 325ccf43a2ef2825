"""Distances between embeddings, their error bars, and which embeddings compare."""

from .comparable import check_comparable
from .distance import cross_distances, distance_matrix
from .kinds import DistanceKind, SymKind
from .uncertainty import neighbour_ranks, norm_with_error, relative_error, with_error

__all__ = [
    "DistanceKind",
    "SymKind",
    "check_comparable",
    "cross_distances",
    "distance_matrix",
    "neighbour_ranks",
    "norm_with_error",
    "relative_error",
    "with_error",
]
