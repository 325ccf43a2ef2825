"""Task2Vec: turn an image data set into a vector, the per-filter Fisher information of a fixed probe."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._names import *

__all__ = [
    "BuildInfo",
    "EmbedSettings",
    "Embedding",
    "Estimate",
    "FeatureCache",
    "HeadSettings",
    "Library",
    "Preprocess",
    "Probe",
    "Reference",
    "Task",
    "Task2VecWarning",
    "VariationalSettings",
    "as_task",
    "build_info",
    "build_library",
    "cross_distances",
    "cross_diversity",
    "distance_matrix",
    "diversity",
    "embed_batches",
    "embed_for",
    "filter_grad_sq",
    "fisher_embed",
    "load_embeddings",
    "load_probe",
    "neighbour_ranks",
    "norm_with_error",
    "relative_error",
    "with_error",
]


def __getattr__(name: str) -> Any:
    """Import everything public on the first use of any of it: `task2vec --help` does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = importlib.import_module("._names", __name__)
    globals().update({each: getattr(public, each) for each in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
