"""Choosing the expert for a task, and scoring the ways to choose against an error matrix."""

from ..experts import IMAGENET, ErrorMatrix
from .baselines import BASELINES, TRANSFERABILITY
from .choose import Choice, Ranked, choose
from .distances import Distance
from .evaluate import MEASURES, Interval, Row, Table, evaluate
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
        Distance("library_correlation", distance="library_correlation"),
        Model2Vec(),
        *TRANSFERABILITY,
    )
}
"""All ways to choose, by name."""

__all__ = [
    "IMAGENET",
    "MEASURES",
    "SELECTORS",
    "Choice",
    "Distance",
    "ErrorMatrix",
    "ExpertFacts",
    "Interval",
    "Model2Vec",
    "Ranked",
    "Row",
    "Selector",
    "Table",
    "TaskFacts",
    "choose",
    "evaluate",
]
