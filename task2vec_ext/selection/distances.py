"""The expert whose task is nearest: d_sym, d_asym, and α chosen from the experts' errors on other tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from .._util.words import check_word
from ..distance.distance import cross_distances
from ..distance.reference import ENOUGH, Reference
from ..experts import ErrorMatrix
from .selector import ExpertFacts, Selector, TaskFacts

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..embedding import Embedding

PairDistance = Literal["sym", "sym_scaled", "asym", "asym_scaled", "library_correlation"]

PAPER_ALPHA = 0.15
"""The paper's α, for a ResNet-34 probe: used before anything is learned, and to break ties between learned values."""
ALPHAS = tuple(step / 20 for step in range(81))
"""Values of α that are tried. Over 107 real tasks (ResNet-18) d_sym(a, t₀) has a standard deviation of 0.05,
d_sym(a, b) one of 0.12: 0.15 changes hardly any choice, and at 4 the former dominates."""


@dataclass(frozen=True)
class Distance(Selector):
    """The expert whose task's embedding is nearest: score −d(expert's task, task).

    Three passes of one network, however many experts there are: one for the head's features, then forward and backward
    for the Fisher. The experts themselves are not run.

    Args:
        name: Name of the selector.
        distance: Which distance; `task2vec_ext.distance` has the formulas.
        alpha: Weight of the distance to the trivial task; None: the one of `ALPHAS` whose choices have the least mean
            relative increase of error on the tasks of `fit`, `PAPER_ALPHA` before that.
        reference: What ``library_correlation`` measures differences from; None: the tasks of the experts,
            ten or more.

    Source:
        Achille et al., 1902.03545.
    """

    name: str = "asym"
    why: ClassVar[str] = "was trained on the nearest task"
    passes_per_task: ClassVar[int | None] = 3
    distance: PairDistance = "asym"
    alpha: float | None = PAPER_ALPHA
    reference: Reference | None = None

    def __post_init__(self) -> None:
        """Check the distance."""
        check_word("Distance", "distance", self.distance, PairDistance)

    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        return self.rank_all([task], experts)[:, 0]

    def rank_all(self, tasks: Sequence[TaskFacts], experts: Sequence[ExpertFacts]) -> Tensor:
        return -self._distances(tasks, experts, PAPER_ALPHA if self.alpha is None else self.alpha)

    @property
    def learns(self) -> bool:
        return self.alpha is None

    def fit(self, errors: ErrorMatrix, tasks: Mapping[str, TaskFacts], experts: Mapping[str, ExpertFacts]) -> Self:
        return next(self.fit_parts(errors, tasks, experts, [[]]))

    def fit_parts(
        self,
        errors: ErrorMatrix,
        tasks: Mapping[str, TaskFacts],
        experts: Mapping[str, ExpertFacts],
        parts: Sequence[Sequence[int]],
    ) -> Iterator[Self]:
        if not self.learns:
            yield from (self for _ in parts)
            return
        known = [experts[name] for name in errors.experts]
        targets = [tasks[name] for name in errors.tasks]
        zero, one = (self._distances(targets, known, alpha) for alpha in (0.0, 1.0))  # d_asym is linear in α
        every = torch.stack([increases(-(zero + alpha * (one - zero)), errors.errors) for alpha in ALPHAS])  # [α, T]
        for held_out in parts:
            others = torch.ones(len(targets), dtype=torch.bool)
            others[list(held_out)] = False
            means = every[:, others].nanmean(1).nan_to_num(nan=0.0)
            best = [alpha for alpha, mean in zip(ALPHAS, means.tolist(), strict=True) if mean <= float(means.min())]
            yield replace(self, alpha=min(best, key=lambda alpha: abs(alpha - PAPER_ALPHA)))

    def _distances(self, tasks: Sequence[TaskFacts], experts: Sequence[ExpertFacts], alpha: float) -> Tensor:
        """Distances of experts to tasks, ``[E, T]``; NaN for an expert whose task has no embedding."""
        targets = self._embeddings(tasks)
        sources = {e: expert.embedding for e, expert in enumerate(experts) if expert.embedding is not None}
        if not sources:
            raise self._no_expert("an embedding of its task", tasks[0], len(experts))
        found = torch.full((len(experts), len(tasks)), torch.nan, dtype=torch.float64)
        how = self.options(list(sources.values()), alpha)
        found[list(sources)] = cross_distances(list(sources.values()), targets, self.distance, **how)
        return found

    def options(self, sources: Sequence[Embedding], alpha: float) -> dict[str, Any]:
        """Return the options of `distance_matrix` for the embeddings of experts' tasks."""
        if self.distance != "library_correlation" or self.reference is not None:
            return {"alpha": alpha, "reference": self.reference}
        if len(sources) < ENOUGH:
            raise ValueError(
                f"{self.name}: expected {ENOUGH} experts or more with an embedding of their task, got {len(sources)}; "
                "choose by another distance, or pass the reference of a library."
            )
        return {"alpha": alpha, "reference": Reference.of(sources)}


def increases(scores: Tensor, errors: Tensor) -> Tensor:
    """Return the relative increase of error over the best expert, ``[T]``, of scores and errors ``[E, T]``.

    The mean over ties; NaN for tasks whose least error is 0 or unknown.
    """
    known = ~(scores.isnan() | errors.isnan())
    scores = scores.masked_fill(~known, -torch.inf)
    chosen = known & (scores == scores.max(0).values)
    least = errors.masked_fill(errors.isnan(), torch.inf).min(0).values
    found = errors.masked_fill(~chosen, 0).sum(0) / chosen.sum(0)
    return (found / least - 1).masked_fill((least <= 0) | least.isinf(), torch.nan)
