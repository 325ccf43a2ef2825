"""The head that is fitted to a task, and the Fisher information of the probe's filters under it."""

from .head import Head, HeadMethod, fit_head
from .per_sample import AnyEstimator, Estimator, FisherSum, cotangents, per_sample_fisher, sum_fisher
from .variational import Noise, Variational, VariationalRecipe

__all__ = [
    "AnyEstimator",
    "Estimator",
    "FisherSum",
    "Head",
    "HeadMethod",
    "Noise",
    "Variational",
    "VariationalRecipe",
    "cotangents",
    "fit_head",
    "per_sample_fisher",
    "sum_fisher",
]
