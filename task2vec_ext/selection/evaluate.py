"""Selectors scored on tasks whose errors with every expert are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._util.progress import progress_bar
from ..experts import IMAGENET, ErrorMatrix
from .measures import chosen_error, hit_rate, spearman, weighted_tau
from .selector import ExpertFacts, Selector, TaskFacts

_MOST_FOLDS = 100  # fits of a selector that learns
MEASURES = ("increase", "points", "top1", "top3", "spearman", "tau")


class Interval(NamedTuple):
    """A mean over tasks and its bootstrap interval; NaN where no task has a value.

    Attributes:
        value: The mean.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Row:
    """One selector's row of the table.

    Args:
        selector: Name of the selector.
        passes: Forward passes over the task's images that choosing costs.
        scores: ``[E, T]`` float64, higher is better; NaN for a task's own expert and where there is none.
        outcomes: ``[6, T]`` float64, the `MEASURES` of every task.
        means: Mean of every measure over the tasks, with its interval.
    """

    selector: str
    passes: int
    scores: Tensor
    outcomes: Tensor
    means: dict[str, Interval]


@dataclass(frozen=True, eq=False)
class Table:
    """How good the choices of selectors are.

    ``increase``: mean of (error of the chosen expert − least error) / least error, a task's own expert excluded;
    ``points``: mean of error − least error, also over tasks whose least error is 0; ``top1`` and ``top3``: how often
    the best expert is the first, among the first three; ``spearman`` and ``tau``: rank correlations of scores and
    accuracies.

    Args:
        rows: One for each selector.
        tasks: The T tasks that are scored.
        experts: The E experts to choose from.
        optimum: ``[T]`` float64: least error on each task.
        draws: ``[B, T]`` int64: the bootstrap's samples of tasks, the same for every selector.
        left_out: Tasks that are not scored, and why.
        unable: Selectors without a row, and why.
        confidence: Confidence of the intervals.
    """

    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    experts: tuple[str, ...]
    optimum: Tensor
    draws: Tensor
    left_out: dict[str, str]
    unable: dict[str, str]
    confidence: float

    def row(self, selector: str) -> Row:
        """Return the row of a selector.

        Raises:
            ValueError: If there is no such row.
        """
        rows = {row.selector: row for row in self.rows}
        if selector not in rows:
            raise ValueError(f"Table.row: expected one of {', '.join(rows)}; got {selector!r}.")
        return rows[selector]

    def difference(self, selector: str, other: str, measure: str = "increase") -> Interval:
        """Return a selector's mean minus another's, over the same draws of tasks.

        Selectors whose intervals overlap may still differ: most of an interval's width comes from which tasks were
        drawn, and both have the same draws.

        Args:
            selector: The selector.
            other: The one it is compared with.
            measure: One of `MEASURES`.

        Raises:
            ValueError: If there is no such row or measure.
        """
        if measure not in MEASURES:
            raise ValueError(f"Table.difference: expected one of {', '.join(MEASURES)}; got {measure!r}.")
        one, two = (self.row(name).outcomes[MEASURES.index(measure)] for name in (selector, other))
        return _means((one - two)[None], self.draws, self.confidence)[0]

    def to_json(self) -> dict[str, Any]:
        """Return the table for JSON, with None instead of NaN."""
        return {
            "tasks": len(self.tasks),
            "experts": len(self.experts),
            "optimum": float(self.optimum.mean()),
            "confidence": self.confidence,
            "selectors": {
                row.selector: {"passes": row.passes, **{name: _finite(found) for name, found in row.means.items()}}
                for row in self.rows
            },
            "left_out": self.left_out,
            "unable": self.unable,
        }


def _finite(interval: Interval) -> dict[str, float | None]:
    return {key: number if math.isfinite(number) else None for key, number in interval._asdict().items()}


def evaluate(
    errors: ErrorMatrix,
    selectors: Sequence[Selector],
    tasks: Mapping[str, TaskFacts],
    experts: Mapping[str, ExpertFacts] | None = None,
    *,
    folds: int | None = None,
    draws: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool | None = False,
) -> Table:
    """Return the table of selectors over all tasks of an error matrix.

    The own expert of a task (the one of its name) cannot be chosen for it, and the row `IMAGENET` only by the selector
    of that name. Selectors that learn are fitted to the errors on the other tasks. ``table.unable`` says why a
    selector that knows too little of a task has no row.

    Args:
        errors: Errors of experts on tasks; NaN where they were not measured.
        selectors: Selectors of different names.
        tasks: What is known of the tasks, by name, including those that experts were trained on; of others only the
            name is known.
        experts: What is known of the experts, by name; default: each was trained on the task of its name.
        folds: Parts of the tasks that are held out in turn when a selector is fitted; default: one task each, but at
            most 100 parts; 0: no fit, selectors are taken as they are.
        draws: Bootstrap samples of the tasks.
        confidence: Confidence of the intervals.
        seed: Seed of the bootstrap.
        progress: Show progress, selector by selector; None: where standard error is a terminal.

    Raises:
        ValueError: If no task has two experts to choose from, or an option is impossible.

    Note:
        The bootstrap takes tasks to be independent. Where tasks share images or classes, intervals are too narrow.
    """
    if draws < 1 or not 0 < confidence < 1 or (folds is not None and folds < 0):
        raise ValueError(
            f"evaluate: expected draws >= 1, confidence in (0, 1) and folds >= 0, got {draws}, {confidence}, {folds}."
        )
    names = [one.name for one in selectors]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ValueError(f"evaluate: expected selectors of different names, got {twice or 'none'}.")
    tasks = {name: tasks.get(name, TaskFacts(name)) for name in (*errors.tasks, *errors.experts)}
    known = experts or {}
    facts = {
        name: known.get(name, ExpertFacts(name, None if name == IMAGENET else tasks[name])) for name in errors.experts
    }
    errors, choosable, left_out = _scored(errors)
    optimum = errors.errors.masked_fill(~choosable, torch.inf).min(0).values
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(len(errors.tasks), (draws, len(errors.tasks)), generator=generator)
    among = tuple(name for name, row in zip(errors.experts, choosable.any(1).tolist(), strict=True) if row)
    rows, unable = [], {}
    for selector in selectors:
        try:
            with progress_bar(selector.name, len(errors.tasks), progress) as advance:
                found = _scores(selector, errors, tasks, facts, folds, advance)
        except ValueError as error:
            unable[selector.name] = str(error)
            continue
        inside = found.masked_fill(~choosable, torch.nan)
        # For a task without a score for an expert that may be chosen, all scores: the selector `IMAGENET`.
        found = torch.where(inside.isnan().all(0), found, inside)
        columns = zip(found.T, errors.errors.T, choosable.T, optimum.tolist(), strict=True)
        outcomes = torch.tensor([_outcomes(*column) for column in columns], dtype=torch.float64).T
        means = dict(zip(MEASURES, _means(outcomes, samples, confidence), strict=True))
        rows.append(Row(selector.name, selector.passes(len(among)), found, outcomes, means))
    return Table(tuple(rows), errors.tasks, among, optimum, samples, left_out, unable, confidence)


def _scored(errors: ErrorMatrix) -> tuple[ErrorMatrix, Tensor, dict[str, str]]:
    """Return the errors on tasks with two experts to choose from, which these are ``[E, T]``, and the other tasks."""
    errors = errors.without_own()
    choosable = torch.tensor([name != IMAGENET for name in errors.experts])[:, None] & ~errors.errors.isnan()
    counts = dict(zip(errors.tasks, choosable.sum(0).tolist(), strict=True))
    few = {name: count for name, count in counts.items() if count < 2}
    scored = [name for name in counts if name not in few]
    if not scored:
        raise ValueError(
            "evaluate: expected a task with two experts or more to choose from, its own and the probe not counted, got "
            f"none among {len(errors.tasks)}; measure more errors."
        )
    left_out = {name: f"{count} expert{'s' * (count != 1)} to choose from" for name, count in few.items()}
    return errors.select(tasks=scored), choosable[:, [name not in few for name in errors.tasks]], left_out


def _scores(
    selector: Selector,
    errors: ErrorMatrix,
    tasks: Mapping[str, TaskFacts],
    experts: Mapping[str, ExpertFacts],
    folds: int | None,
    advance: Callable[[int], None],
) -> Tensor:
    """Scores of all experts for every task, ``[E, T]``, by a selector fitted to the other folds; NaN without error."""
    T = len(errors.tasks)
    count = min(_MOST_FOLDS if folds is None else folds, T)
    parts = [range(number, T, count) for number in range(count)] if count and selector.learns else [range(T)]
    fitted = selector.fit_parts(errors, tasks, experts, parts) if selector.learns else iter([selector])
    targets, candidates = [tasks[name] for name in errors.tasks], [experts[name] for name in errors.experts]
    found, unknown = torch.full_like(errors.errors, torch.nan), errors.errors.isnan()
    for held_out, one in zip(parts, fitted, strict=True):
        scores = one.rank_all([targets[t] for t in held_out], candidates)
        found[:, list(held_out)] = scores.masked_fill(unknown[:, list(held_out)], torch.nan)
        for t in held_out:
            if found[:, t].isnan().all():  # a selector may refuse experts of which it knows nothing
                one.rank(targets[t], [candidates[e] for e in (~unknown[:, t]).nonzero().flatten().tolist()])
        advance(len(held_out))
    if found.isnan().all():
        what = f"a row {IMAGENET} in the errors" if selector.name == IMAGENET else "an expert with a score"
        raise ValueError(f"{selector.name}: expected {what}, got none among {len(errors.experts)} rows.")
    return found


def _outcomes(scores: Tensor, errors: Tensor, choosable: Tensor, best: float) -> tuple[float, ...]:
    chosen = chosen_error(scores, errors)
    inside, among = scores[choosable], errors[choosable]
    return (
        chosen / best - 1 if best > 0 else math.nan,
        chosen - best,
        hit_rate(inside, among, 1),
        hit_rate(inside, among, 3),
        spearman(inside, among),
        weighted_tau(inside, among),
    )


def _means(values: Tensor, draws: Tensor, confidence: float) -> list[Interval]:
    """The means of ``[M, T]`` over tasks that have a value, and the bootstrap's percentiles of them."""
    known = ~values.isnan()
    counts = torch.zeros(draws.shape, dtype=values.dtype).scatter_add_(1, draws, values.new_ones(draws.shape))
    means = (values.masked_fill(~known, 0) @ counts.T) / (known.to(values.dtype) @ counts.T)  # [M, B]
    tail = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=values.dtype)
    found = []
    for value, drawn in zip(values.nanmean(1).tolist(), means, strict=True):
        drawn = drawn[~drawn.isnan()]  # a draw may hold no task that has a value
        found.append(Interval(value, *drawn.quantile(tail).tolist()) if len(drawn) else Interval(*[math.nan] * 3))
    return found
