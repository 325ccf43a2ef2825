"""Choosing: the experts in order, with error bars, and why the first comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..distance.distance import distance_matrix
from ..distance.uncertainty import neighbour_ranks
from .distances import PAPER_ALPHA, Distance
from .selector import ExpertFacts, Selector, TaskFacts


class Ranked(NamedTuple):
    """An expert and its place.

    Attributes:
        name: The expert's name.
        score: Higher is better; NaN where the selector has none.
        standard_error: Standard error of the score, from the images of both embeddings; None if unknown.
        best: Lower end of the 95 % interval of its place, from 1; None if unknown.
        worst: Upper end.
    """

    name: str
    score: float
    standard_error: float | None = None
    best: int | None = None
    worst: int | None = None


@dataclass(frozen=True)
class Choice:
    """The experts in order.

    Args:
        task: Name of the task to solve.
        selector: Name of the selector.
        ranked: The experts, best first; those without a score last, equal scores by name.
        why: One sentence about the first.
    """

    task: str
    selector: str
    ranked: tuple[Ranked, ...]
    why: str


def choose(task: TaskFacts, experts: Sequence[ExpertFacts], selector: Selector) -> Choice:
    """Return the experts in order of their scores.

    For a `Distance`, scores and places have error bars if all embeddings have.

    Args:
        task: The task to solve.
        experts: Experts to choose from.
        selector: What scores them; fitted, if it learns.

    Raises:
        ValueError: If there are no experts, or too little is known.
    """
    if not experts:
        raise ValueError(f"choose: expected an expert to choose from for {task.name!r}, got none.")
    scores = selector.rank(task, experts).tolist()
    sure = _places(task, experts, selector) if isinstance(selector, Distance) else {}
    named = zip((expert.name for expert in experts), scores, strict=True)
    found = [sure.get(name, Ranked(name, score))._replace(score=score) for name, score in named]
    ranked = sorted(found, key=lambda one: (one.score != one.score, -one.score, one.name))
    return Choice(task.name, selector.name, tuple(ranked), _why(ranked, selector))


def _places(task: TaskFacts, experts: Sequence[ExpertFacts], selector: Distance) -> dict[str, Ranked]:
    """Standard errors and places by name; none if an embedding has no error bars."""
    known = [expert for expert in experts if expert.embedding is not None]
    every = [one for one in (*(expert.embedding for expert in known), task.embedding) if one is not None]
    if any(embedding.group_means is None for embedding in every):
        return {}
    alpha, target = PAPER_ALPHA if selector.alpha is None else selector.alpha, len(known)
    how = selector.options(every[:target], alpha)
    errors = distance_matrix(every, selector.distance, with_error=True, **how).standard_error[:target, target]
    places = neighbour_ranks(every, target, selector.distance, **how)
    found = zip(known, errors.tolist(), places.low[:target].tolist(), places.high[:target].tolist(), strict=True)
    return {expert.name: Ranked(expert.name, 0.0, error, low, high) for expert, error, low, high in found}


def _why(ranked: Sequence[Ranked], selector: Selector) -> str:
    first = ranked[0]
    start = f"{first.name} {selector.why} ({selector.name} score {first.score:.4g})"
    if len(ranked) == 1:
        return f"{start}; there is no other."
    second = ranked[1]
    if second.score != second.score:
        return f"{start}; too little is known of the others."
    if second.score == first.score:
        tied = sum(one.score == first.score for one in ranked) - 1
        return f"{start}, tied with {tied} other{'s' * (tied > 1)}."
    ahead = f"{start}, {first.score - second.score:.2g} ahead of {second.name}"
    if first.worst is None:
        return f"{ahead}."
    rivals = [one.name for one in ranked[1:] if one.best == 1]
    if not rivals:
        return f"{ahead}; the lead is significant (95 %)."
    others = rivals[0] if len(rivals) == 1 else f"any of {len(rivals)} others"
    return f"{ahead}; the lead is not significant (95 %): {others} may be first, too."
