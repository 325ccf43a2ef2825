"""How good was a choice? Measures of one task's scores, ``[E]``, against the experts' errors, ``[E]``.

Ties are broken at random, and measures are expectations over that: equal scores for all are chance. An expert without a
score (NaN) comes last in every order, and is not chosen where another has one. An expert without an error (NaN) does
not take part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def chosen_error(scores: Tensor, errors: Tensor) -> float:
    """Return the error of the expert with the highest score, the mean over ties; NaN where no expert has both."""
    scores, errors = _both(scores, errors)
    return float(errors[scores == scores.max()].mean()) if len(scores) else math.nan


def hit_rate(scores: Tensor, errors: Tensor, k: int) -> float:
    """Return the probability that a best expert is among the k highest scores: 0 or 1 unless scores tie."""
    scores, errors = _ordered(scores, errors)
    if not len(scores):
        return math.nan
    best = errors == errors.min()
    if k >= len(scores):
        return 1.0
    last = scores.sort(descending=True).values[k - 1]
    above, tied = scores > last, scores == last
    if (best & above).any():
        return 1.0
    places, size, good = k - int(above.sum()), int(tied.sum()), int((best & tied).sum())
    return 1 - math.comb(size - good, places) / math.comb(size, places)


def spearman(scores: Tensor, errors: Tensor) -> float:
    """Return Spearman's rank correlation of scores and accuracies (1 − error), in [−1, 1]; ties have their mean rank.

    NaN where all scores, or all errors, are equal.
    """
    scores, errors = _ordered(scores, errors)
    if len(scores) < 2:
        return math.nan
    ranks = torch.stack([_mean_ranks(scores), _mean_ranks(-errors)])
    ranks -= ranks.mean(1, keepdim=True)
    return float((ranks[0] * ranks[1]).sum() / ranks.square().sum(1).prod().sqrt())


def weighted_tau(scores: Tensor, errors: Tensor) -> float:
    """Return Kendall's τ of scores and accuracies where the exchange of two experts weighs 1/rank + 1/rank.

    The mean over ranks by score and ranks by accuracy, as in the evaluations of LogME and its successors (Vigna, WWW
    2015, 1404.3325). In [−1, 1]; NaN where all scores, or all errors, are equal.
    """
    scores, errors = _ordered(scores, errors)
    values = [-errors, scores]
    if any(len(value) < 2 or (value == value[0]).all() for value in values):
        return math.nan
    signs = [(value[:, None] - value).nan_to_num_(0).sign_() for value in values]  # −∞ − −∞: a tie
    total = 0.0
    for first, second in (values, reversed(values)):
        # Of equals by the one, the better by the other comes first.
        by_second = second.sort(descending=True, stable=True).indices
        order = by_second[first[by_second].sort(descending=True, stable=True).indices]
        weight = torch.empty_like(first)
        weight[order] = 1 / torch.arange(1, len(first) + 1, dtype=first.dtype)
        pairs = weight[:, None] + weight
        untied = (pairs * signs[0].square()).sum() * (pairs * signs[1].square()).sum()
        total += float((pairs * signs[0] * signs[1]).sum() / untied.sqrt())
    return total / 2


def _both(scores: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """The experts that have a score and an error."""
    known = ~(scores.isnan() | errors.isnan())
    return scores[known].double(), errors[known].double()


def _ordered(scores: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """The experts that have an error, those without a score last; none where no expert has both."""
    known = ~errors.isnan() if len(_both(scores, errors)[0]) else torch.zeros_like(errors, dtype=torch.bool)
    return scores[known].double().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf), errors[known].double()


def _mean_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 for the smallest, equals sharing their mean, ``[E]`` float64."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[places]
