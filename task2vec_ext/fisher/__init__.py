"""The head that is fitted to a task, and the Fisher information of the probe's filters under it."""

from ..words import AnyEstimator, Estimator, HeadMethod, Noise
from .cross_fit import CrossFitHead, fit_cross_fit_head
from .head import Head, HeadSettings, fit_head
from .per_sample import FisherSum, cotangents, per_sample_fisher, sum_fisher
from .variational import Objective, VariationalSettings

__all__ = [
    "AnyEstimator",
    "CrossFitHead",
    "Estimator",
    "FisherSum",
    "Head",
    "HeadMethod",
    "HeadSettings",
    "Noise",
    "Objective",
    "VariationalSettings",
    "cotangents",
    "fit_cross_fit_head",
    "fit_head",
    "per_sample_fisher",
    "sum_fisher",
]
