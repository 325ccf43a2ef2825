"""Choosing the expert for a task: how it would have gone, by error matrix, and which one to take."""

from ..experts.errors import IMAGENET, ErrorMatrix
from .baselines import BASELINES, TRANSFERABILITY
from .distances import Distance
from .model2vec import Model2Vec
from .selector import ExpertFacts, Selector, TaskFacts

SELECTORS: dict[str, Selector] = {
    selector.name: selector
    for selector in (
        *BASELINES,
        Distance("sym", distance="sym"),
        Distance("asym"),
        Distance("asym_fitted", alpha=None),
        Distance("asym_scaled", distance="asym_scaled"),
        Model2Vec(),
        *TRANSFERABILITY,
    )
}
"""All ways to choose, by name."""

__all__ = [
    "IMAGENET",
    "SELECTORS",
    "Distance",
    "ErrorMatrix",
    "ExpertFacts",
    "Model2Vec",
    "Selector",
    "TaskFacts",
]
