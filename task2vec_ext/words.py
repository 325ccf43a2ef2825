"""Arguments that are one of a few words, on one page: the command line completes them without waiting for torch."""

from __future__ import annotations

from typing import Literal

OnError = Literal["raise", "skip"]
"""What becomes of an image that cannot be read."""

Decoder = Literal["exact", "draft"]
"""How image files are decoded: `task2vec_ext.data.Preprocess`."""

LossName = Literal["cross_entropy", "multilabel", "regression", "dense"]
"""What a task's labels are: `task2vec_ext.losses`."""

Dtype = Literal["float32", "tf32", "bfloat16"]
"""What a network's pass computes in."""

HeadMethod = Literal["lbfgs", "adam"]
"""How a head is fitted."""

Estimator = Literal["exact", "signed", "sampled", "empirical"]
"""How the expectation over labels is taken: `task2vec_ext.fisher.per_sample`."""

AnyEstimator = Literal[Estimator, "variational"]
"""An estimator, or the robust Fisher: `task2vec_ext.fisher.variational`."""

Noise = Literal["activations", "weights"]
"""Where the robust Fisher adds its noise."""

DistanceName = Literal[
    "sym",
    "sym_scaled",
    "asym",
    "asym_scaled",
    "cosine",
    "normalized_cosine",
    "correlation",
    "entropy",
    "kl",
    "asymmetric_kl",
    "jsd",
    "library_correlation",
]
"""Distances: `task2vec_ext.distance`."""

SymDistanceName = Literal["sym", "sym_scaled", "library_correlation"]
"""Those that neighbours are searched by: symmetric, and of F alone."""

RecipeName = Literal["paper", "quick"]
"""How a network is fine-tuned: `task2vec_ext.experts.recipe`."""

Rows = Literal["experts", "tasks"]
"""What the rows of a table of errors are."""
