"""Selectors scored against an error matrix: chosen on one half of the tasks, measured on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from task2vec_ext import Embedding
from task2vec_ext.experts.errors import IMAGENET
from task2vec_ext.experts.features import ExpertFeatures
from task2vec_ext.selection import SELECTORS, Distance, ErrorMatrix, ExpertFacts, Model2Vec, Selector, TaskFacts
from task2vec_ext.selection.evaluate import Table, evaluate

FORMS = ("layers", "filters")
PENALTIES = (0.1, 1.0, 10.0)
ALPHAS = (0.0, 0.15, 0.5)


@dataclass(frozen=True)
class Scored:
    """What came of it.

    Args:
        chosen: α, distance and MODEL2VEC's options, by the first half.
        first: Table of all candidates, on the first half, each fitted to the others of it.
        second: Table of the chosen and of all other selectors, on the second half; what they learn, they learned from
            the first.
    """

    chosen: dict[str, str]
    first: Table
    second: Table


@dataclass(frozen=True)
class BestElsewhere(Selector):
    """Always the expert with the least error, relative to the tasks' means, on the tasks it learned from. No passes.

    A baseline that knows errors and no task: what MODEL2VEC learns must be more than that.
    """

    name: str = "best_elsewhere"
    why: ClassVar[str] = "did best on other tasks"
    errors: Mapping[str, float] = field(default_factory=dict)

    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        """Return −the mean relative error of every expert."""
        return torch.tensor([-self.errors.get(expert.name, torch.nan) for expert in experts], dtype=torch.float64)

    def passes(self, num_experts: int) -> float:
        """Return 0."""
        return 0

    def fit(
        self, errors: ErrorMatrix, tasks: Mapping[str, TaskFacts], experts: Mapping[str, ExpertFacts]
    ) -> BestElsewhere:
        """Return the baseline that knows these errors."""
        relative = errors.errors / errors.errors.nanmean(0).clamp(min=1e-9)
        return replace(self, errors=dict(zip(errors.experts, relative.nanmean(1).tolist(), strict=True)))


def facts(
    names: Sequence[str],
    sizes: Mapping[str, int],
    embeddings: Mapping[str, Embedding],
    outputs: Callable[[str, str], ExpertFeatures],
) -> dict[str, TaskFacts]:
    """Return what is known of tasks.

    Args:
        names: Of the tasks.
        sizes: Images of each.
        embeddings: Of each.
        outputs: Of (task, expert); the probe is the expert `IMAGENET`.
    """
    return {
        name: TaskFacts(
            name,
            embedding=embeddings[name],
            num_images=sizes[name],
            mean_features=outputs(name, IMAGENET).features.mean(0),
            outputs=partial(outputs, name),
        )
        for name in names
    }


def halves(errors: ErrorMatrix) -> tuple[ErrorMatrix, ErrorMatrix]:
    """Return every other task, and the rest: tasks of one domain stand together, so both halves have all domains."""
    return errors.select(tasks=errors.tasks[::2]), errors.select(tasks=errors.tasks[1::2])


def score(errors: ErrorMatrix, tasks: Mapping[str, TaskFacts], selectors: Sequence[str] = tuple(SELECTORS)) -> Scored:
    """Choose on the first half, report on the second.

    Args:
        errors: Of experts on tasks.
        tasks: What is known of them.
        selectors: Of `SELECTORS`, besides what is chosen here; by default all.
    """
    first, second = halves(errors)
    distances = [
        Distance(f"{distance} α={alpha}", distance=distance, alpha=alpha)
        for distance in ("asym", "asym_scaled")
        for alpha in ALPHAS
    ]
    learned = [Model2Vec(f"model2vec {form} l2={l2}", form=form, l2=l2) for form in FORMS for l2 in PENALTIES]
    tried = evaluate(first, [*distances, *learned], tasks, folds=5)
    chosen = {
        "asym_chosen": _best(tried, distances),
        "model2vec_chosen": _best(tried, learned),
    }
    experts = {name: ExpertFacts(name, None if name == IMAGENET else tasks[name]) for name in errors.experts}
    reported = [
        *(SELECTORS[name] for name in selectors),
        BestElsewhere(),
        *(replace(one, name=name) for name, one in chosen.items()),
    ]
    fitted = [selector.fit(first.without_own(), tasks, experts) for selector in reported]
    return Scored({name: one.name for name, one in chosen.items()}, tried, evaluate(second, fitted, tasks, folds=0))


def _best(table: Table, candidates: Sequence[Distance | Model2Vec]) -> Distance | Model2Vec:
    """Return the candidate whose choices have the least mean relative increase of error; of equals the first."""
    return min(candidates, key=lambda one: table.row(one.name).means["increase"].value)


def print_table(table: Table) -> None:
    """Print one line a selector, the best first."""
    print(f"{len(table.tasks)} tasks, {len(table.experts)} experts, least error {float(table.optimum.mean()):.1%}")
    for row in sorted(table.rows, key=lambda row: row.means["increase"].value):
        cells = [
            f"{row.means['increase'].value:+7.1%} [{row.means['increase'].low:+.1%}, {row.means['increase'].high:+.1%}]"
        ]
        cells += [f"{name} {row.means[name].value:.2f}" for name in ("points", "top1", "top3", "spearman", "tau")]
        print(f"{row.selector:>28} {'  '.join(cells)}  passes {row.passes:g}")
    for name, why in table.unable.items():
        print(f"{name:>28} {why}")
