"""Selectors scored against an error matrix, and what explains their scores.

Options are chosen on one half of the tasks, and results are reported on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from task2vec_ext import Embedding, cross_distances, relative_error
from task2vec_ext.experts.features import ExpertFeatures
from task2vec_ext.experts.transfer import classifier_mistakes
from task2vec_ext.selection import (
    IMAGENET,
    SELECTORS,
    Distance,
    ErrorMatrix,
    ExpertFacts,
    Model2Vec,
    Selector,
    TaskFacts,
)
from task2vec_ext.selection.evaluate import Table, evaluate
from task2vec_ext.selection.measures import spearman

FORMS = ("layers", "filters")
PENALTIES = (0.1, 1.0, 10.0)
ALPHAS = (0.0, 0.15, 0.5)
ALL_ALPHAS = (0.0, 0.05, 0.15, 0.3, 0.5, 1.0, 2.0)
"""α whose results are shown."""


@dataclass(frozen=True)
class Scored:
    """Results on both halves.

    Args:
        chosen: α, distance and MODEL2VEC's options, chosen on the first half.
        first: Table of all candidates on the first half, cross-validated.
        second: Table of the chosen and of all other selectors on the second half, fitted to the first.
    """

    chosen: dict[str, str]
    first: Table
    second: Table


@dataclass(frozen=True)
class BestElsewhere(Selector):
    """Always the expert with the least error on the tasks it was fitted to, relative to the tasks' means. No passes.

    A baseline that knows nothing of the task: MODEL2VEC must beat it.
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
    """Return what is known of each task.

    Args:
        names: The tasks.
        sizes: Number of images of each.
        embeddings: Of each.
        outputs: Features for (task, expert); the probe is the expert `IMAGENET`.
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
    """Choose options on the first half, report all selectors on the second.

    Args:
        errors: Of experts on tasks.
        tasks: What is known of them.
        selectors: Names in `SELECTORS` to report, besides those chosen here.
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
    fitted = [selector.fit(without_own(first), tasks, experts) for selector in reported]
    return Scored({name: one.name for name, one in chosen.items()}, tried, evaluate(second, fitted, tasks, folds=0))


def without_own(errors: ErrorMatrix) -> ErrorMatrix:
    """Return the errors with NaN where a task meets its own expert."""
    own = torch.tensor([[expert == task for task in errors.tasks] for expert in errors.experts])
    return ErrorMatrix(errors.errors.masked_fill(own, torch.nan), errors.experts, errors.tasks)


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


def reasons(
    errors: ErrorMatrix,
    tasks: Mapping[str, TaskFacts],
    domains: Mapping[str, str],
    tests: Mapping[str, int],
    table: Table,
) -> dict[str, Any]:
    """Return figures that explain why a selector wins or does not.

    Args:
        errors: Of all experts on all tasks, without NaN.
        tasks: What is known of them.
        domains: Of experts and tasks, by name.
        tests: Number of images that the errors of a task were measured on.
        table: Of selectors.
    """
    names = [name for name in errors.experts if name != IMAGENET]
    ours = without_own(errors.select(experts=names))
    known = ours.errors
    least = known.nan_to_num(nan=torch.inf).min(0)
    zero, one = (_all(tasks, ours, alpha) for alpha in (0.0, 1.0))
    pull = (zero - one)[:, 0]  # d_sym(a, t₀), the same for every task
    mean_error = (known / least.values.clamp(min=1e-9))[:, least.values > 0].nanmean(1)
    embeddings = _embeddings(tasks, ours.tasks)
    norms = torch.tensor([embedding.norm for embedding in embeddings])
    source_norms = torch.tensor([embedding.norm for embedding in _embeddings(tasks, ours.experts)])
    images = torch.tensor([float(embedding.num_samples) for embedding in embeddings])
    classes = torch.tensor([float(embedding.head.num_outputs) for embedding in embeddings])
    return {
        "best_expert_in_own_domain": _mean(
            domains[names[int(e)]] == domains[task] for e, task in zip(least.indices, ours.tasks, strict=True)
        ),
        "experts_better_than_imagenet": _mean((known < errors.row(IMAGENET))[~known.isnan()]),
        "tasks_where_imagenet_is_best": _mean(errors.row(IMAGENET) <= least.values),
        "variance_of_error": _shares(known),
        "noise_of_the_optimum": _noise(known, torch.tensor([tests[task] for task in ours.tasks])),
        "nearest_in_own_domain": {
            row.selector: _mean(
                domains[errors.experts[int(e)]] == domains[task]
                for e, task in zip(row.scores.nan_to_num(nan=-torch.inf).max(0).indices, table.tasks, strict=True)
            )
            for row in table.rows
            if row.selector in ("sym", "asym", "asym_scaled", "asym_chosen", "model2vec_chosen", "domain")
        },
        "alpha": {
            distance: {
                alpha: evaluate(errors, [Distance("d", distance=distance, alpha=alpha)], tasks, draws=1)
                .rows[0]
                .means["increase"]
                .value
                for alpha in ALL_ALPHAS
            }
            for distance in ("asym", "asym_scaled")
        },
        "spearman": {
            "distance to t₀ and mean relative error of an expert": _correlation(pull, mean_error),
            "norm of an expert's task and its mean relative error": _correlation(source_norms, mean_error),
            "norm and images of a task": _correlation(norms, images),
            "norm and classes of a task": _correlation(norms, classes),
            "norm and error of the probe on a task": _correlation(norms, errors.row(IMAGENET)),
        },
        "relative_error_of_embeddings": float(torch.tensor([relative_error(e) for e in embeddings]).median()),
    }


def reliability(
    train: Mapping[str, ExpertFeatures], test: Mapping[str, ExpertFeatures], own: str, splits: int = 20
) -> tuple[float, float]:
    """Return how well the experts' errors on one half of a task's test images predict those on the other half.

    Args:
        train: Features of the images that classifiers are fitted to, by expert.
        test: Features of the images that errors are measured on, by expert.
        own: The task's own expert, left out.
        splits: Number of random halvings.

    Returns:
        Mean correlation of the experts' errors on the halves; and the mean relative increase of error on the second
        half when the expert that is best on the first is taken.
    """
    names = [name for name in train if name not in (own, IMAGENET)]
    wrong = torch.stack([classifier_mistakes(train[name], test[name]) for name in names]).double()
    generator = torch.Generator().manual_seed(0)
    agree, over = [], []
    for _ in range(splits):
        order = torch.randperm(wrong.shape[1], generator=generator)
        one, other = (wrong[:, order[start::2]].mean(1) for start in (0, 1))
        agree.append(torch.corrcoef(torch.stack([one, other]))[0, 1])
        over.append(other[one.argmin()] / other.min() - 1)
    finite = torch.stack(over)[torch.stack(over).isfinite()]
    return float(torch.stack(agree).nanmean()), float(finite.mean())


def _embeddings(tasks: Mapping[str, TaskFacts], names: Sequence[str]) -> list[Embedding]:
    return [embedding for name in names if (embedding := tasks[name].embedding) is not None]


def _all(tasks: Mapping[str, TaskFacts], errors: ErrorMatrix, alpha: float) -> Tensor:
    """Distances of all experts' tasks to all tasks, ``[E, T]``."""
    return cross_distances(_embeddings(tasks, errors.experts), _embeddings(tasks, errors.tasks), "asym", alpha=alpha)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's rank correlation."""
    return spearman(one.double(), -other.double())


def _shares(errors: Tensor) -> dict[str, float]:
    """Return the shares of the variance of ``[E, T]`` that tasks, experts and their pairing explain."""
    task = errors.nanmean(0, keepdim=True)
    expert = (errors - task).nanmean(1, keepdim=True)
    rest = errors - task - expert
    parts = {
        "tasks": task.expand_as(errors)[~errors.isnan()].var(),
        "experts": expert.expand_as(errors)[~errors.isnan()].var(),
        "pairing": rest[~rest.isnan()].var(),
    }
    total = sum(parts.values())
    return {name: float(value / total) for name, value in parts.items()}


def _noise(errors: Tensor, tests: Tensor, draws: int = 200) -> float:
    """Return how much worse the best expert looks than the apparent best, from sampling noise alone.

    Each error is drawn from a binomial distribution around its measured value. The errors of one task were measured on
    the same images, so their differences have less noise than this: an upper bound.
    """
    generator = torch.Generator().manual_seed(0)
    truth = errors.nan_to_num(nan=1.0)
    best = truth.min(0)
    found = []
    for _ in range(draws):
        seen = torch.binomial(tests.double().expand_as(truth), truth, generator=generator) / tests
        least = seen.min(0).values
        chosen = seen.gather(0, best.indices[None])[0]
        valid = least > 0
        found.append((chosen[valid] / least[valid] - 1).mean())
    return float(torch.stack(found).mean())


def _mean(values: Iterable[Any]) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
