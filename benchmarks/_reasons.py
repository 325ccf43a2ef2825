"""Why a way of choosing wins or does not: what the errors, their noise and the embeddings say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from task2vec_ext import Embedding, cross_distances, relative_error
from task2vec_ext.experts.errors import IMAGENET
from task2vec_ext.experts.features import ExpertFeatures
from task2vec_ext.experts.transfer import classifier_mistakes
from task2vec_ext.selection import Distance, ErrorMatrix, TaskFacts
from task2vec_ext.selection.evaluate import Table, evaluate
from task2vec_ext.selection.measures import spearman

ALPHAS = (0.0, 0.05, 0.15, 0.3, 0.5, 1.0, 2.0)


def reasons(
    errors: ErrorMatrix,
    tasks: Mapping[str, TaskFacts],
    domains: Mapping[str, str],
    tests: Mapping[str, int],
    table: Table,
) -> dict[str, Any]:
    """Return figures about an error matrix and its table.

    Args:
        errors: Whole, without NaN.
        tasks: What is known of them.
        domains: Of experts and tasks.
        tests: Images that the errors of a task were measured on.
        table: Of selectors with an "asym" and a "sym".
    """
    names = [name for name in errors.experts if name != IMAGENET]
    ours = errors.select(experts=names)
    own = torch.tensor([[expert == task for task in ours.tasks] for expert in names])
    known = ours.errors.masked_fill(own, torch.nan)
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
        "experts_better_than_imagenet": _mean(bool(value) for value in (known < errors.row(IMAGENET))[~own].flatten()),
        "tasks_where_imagenet_is_best": _mean(
            bool(value) for value in (errors.row(IMAGENET) <= least.values).flatten()
        ),
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
                for alpha in ALPHAS
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
    """Return how well half of a task's test images tells how experts do on the other half.

    Args:
        train: What the experts make of the images that classifiers are fitted to.
        test: … of those that errors are measured on.
        own: The task's expert, left out.
        splits: Random halves.

    Returns:
        Mean correlation of the experts' errors on the halves; and mean relative error, on the second half, of the
        expert that is best on the first, over the one that is best there.
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
    """Return which shares of the variance of ``[E, T]`` are tasks', experts', and of their pairing."""
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
    """Return by how much the truly best expert seems worse than the seemingly best, were the errors the truth.

    Each error is drawn anew from a binomial distribution; those of one task are in truth measured on the same
    images, which makes their differences surer: an upper bound.
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


def _mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
