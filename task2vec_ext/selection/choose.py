"""Choosing: the experts in order, how sure that order is, and why the first comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..distance.distance import distance_matrix
from ..distance.uncertainty import neighbour_ranks
from .distances import PAPER_ALPHA, Distance, source_embeddings, task_embeddings
from .selector import ExpertFacts, Selector, TaskFacts

if TYPE_CHECKING:
    from ..embedding import Embedding


class Ranked(NamedTuple):
    """An expert in its place.

    Args:
        name: Of the expert.
        score: Higher is better; NaN where the selector has none.
        standard_error: Of the score, from the images of both embeddings; None where it is not known.
        best: The best place, from 1, that those images allow (95 %); None where it is not known.
        worst: The worst.
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
        task: To be solved.
        selector: That put them in order.
        ranked: Best first; those without a score last, equal scores by name.
        why: One sentence.
    """

    task: str
    selector: str
    ranked: tuple[Ranked, ...]
    why: str


def choose(task: TaskFacts, experts: Sequence[ExpertFacts], selector: Selector) -> Choice:
    """Return the experts in order of their scores.

    Places and errors are those of d_sym and d_asym between embeddings with error bars; where one has none there are
    none.

    Args:
        task: To be solved.
        experts: To choose from.
        selector: That scores them; fitted, where it learns.

    Returns:
        The choice.

    Raises:
        ValueError: If there are no experts, or too little is known.
    """
    if not experts:
        raise ValueError(f"choose: expected an expert to choose from for {task.name!r}, got none.")
    scores = selector.rank(task, experts).tolist()
    sure = _places(task, experts, selector) if isinstance(selector, Distance) else {}
    found = [
        sure.get(expert.name, Ranked(expert.name, score))._replace(score=score)
        for expert, score in zip(experts, scores, strict=True)
    ]
    ranked = sorted(found, key=lambda one: (one.score != one.score, -one.score, one.name))
    return Choice(task.name, selector.name, tuple(ranked), _why(ranked, selector))


def _places(task: TaskFacts, experts: Sequence[ExpertFacts], selector: Distance) -> dict[str, Ranked]:
    """Errors and places by name; of none where an embedding has no error bars."""
    known: dict[str, Embedding] = {
        expert.name: source
        for expert, source in zip(experts, source_embeddings(experts), strict=True)
        if source is not None
    }
    every = [*known.values(), *task_embeddings(selector, [task])]
    if any(embedding.group_means is None for embedding in every):
        return {}
    alpha, target = PAPER_ALPHA if selector.alpha is None else selector.alpha, len(known)
    errors = distance_matrix(every, selector.distance, alpha=alpha, with_error=True).standard_error[:target, target]
    places = neighbour_ranks(every, target, selector.distance, alpha=alpha)
    return {
        name: Ranked(name, 0.0, error, low, high)
        for name, error, low, high in zip(
            known, errors.tolist(), places.low.tolist(), places.high.tolist(), strict=False
        )
    }


def _why(ranked: Sequence[Ranked], selector: Selector) -> str:
    first = ranked[0]
    start = f"{first.name} {selector.why} ({selector.name} score {first.score:.4g})"
    if len(ranked) == 1:
        return f"{start}; there is no other."
    second = ranked[1]
    if second.score != second.score:
        return f"{start}; too little is known of the others."
    if second.score == first.score:
        tied = sum(one.score == first.score for one in ranked)
        return f"{start}, but so {'does' if tied == 2 else 'do'} {tied - 1} of the others: they tie."
    ahead = f"{start}, {first.score - second.score:.2g} ahead of {second.name}"
    if first.worst is None:
        return f"{ahead}."
    rivals = [one.name for one in ranked[1:] if one.best == 1]
    if not rivals:
        return f"{ahead}: more than the noise of the images."
    others = rivals[0] if len(rivals) == 1 else f"any of {len(rivals)} others"
    return f"{ahead}; with other images of the same kind it might be {others}."
