"""How sure is a number? The delete-a-group jackknife: leave a group of pictures out, see what changes.

With θ of all N pictures, θ_(g) without the n_g of group g, w_g = n_g/N and G groups:

- pseudo-deviations d_g = (1/w_g − 1)·(θ − θ_(g)); for a mean, how far group g's own mean is from it
- bias b = −Σ w_g·d_g, estimated and removable: θ − b
- variance = 1/G Σ (d_g + b)²·w_g/(1 − w_g); for a mean, without bias whatever the sizes of the groups

A statistic of several tasks has a sum over tasks for its bias and variance: each task's pictures are an independent
sample. Where two tasks share pictures their errors are alike and partly cancel in a distance, so its error is
overstated, not understated.

All this is about a task as a source of pictures, of which those at hand are a random sample, under the head that was
fitted to them: what another head would change is not in it.

Source: Busing, Meijer, van der Leeden, Delete-m jackknife for unequal m, Statistics and Computing 9 (1999).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

GROUPS = 32
"""Groups of an embedding. 31 degrees of freedom make an interval 4 % wider than infinitely many would; the float32 means
are a megabyte at 8,512 filters."""

FEWEST_GROUPS = 8
"""Fewer say nothing worth printing: 8 pictures' own spread is only known to a quarter."""


@dataclass(frozen=True)
class Estimate:
    """A number, or a tensor of them, and how sure it is.

    Args:
        value: θ as computed from all pictures.
        standard_error: of `value`, same shape.
        bias: how much `value` is expected to exceed the truth because the pictures are few, same shape.
        freedom: degrees of freedom of `standard_error`, same shape.
    """

    value: Tensor
    standard_error: Tensor
    bias: Tensor
    freedom: Tensor

    @property
    def corrected(self) -> Tensor:
        """The value less its bias."""
        return self.value - self.bias

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the ends of the confidence interval, ``corrected ± t·standard_error``.

        Args:
            confidence: how often such intervals hold the truth, in (0, 1).

        Returns:
            Lower and upper end, each of `value`'s shape.

        Raises:
            ValueError: If the confidence is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"Estimate.interval: expected a confidence between 0 and 1, got {confidence}.")
        half = t_quantile((1 + confidence) / 2, self.freedom) * self.standard_error
        return self.corrected - half, self.corrected + half


def group_sizes(samples: int, groups: int) -> Tensor:
    """Return how many of `samples` pictures, dealt in turn like cards, each group has: ``[G]`` float64."""
    return (samples // groups + (torch.arange(groups) < samples % groups)).double()


def leave_one_out(mean: Tensor, group_means: Tensor, sizes: Tensor) -> Tensor:
    """Return the mean without each group in turn.

    Args:
        mean: of all pictures, ``[K]`` float64.
        group_means: ``[G, K]``.
        sizes: ``[G]``.

    Returns:
        ``[G, K]`` float64, none negative.
    """
    odds = (sizes / (sizes.sum() - sizes))[:, None]
    return (mean - (group_means - mean) * odds).clamp_(min=0)  # group means are rounded to float32


def estimate(value: Tensor, without: Sequence[Tensor], sizes: Sequence[Tensor]) -> Estimate:
    """Return the jackknife's verdict on a statistic of one or several tasks.

    Args:
        value: the statistic of all pictures, of any shape.
        without: for every task the statistic without each of its groups, the others whole: ``[G, *value.shape]``.
        sizes: of every task's groups, ``[G]``.

    Returns:
        Its standard error, bias and degrees of freedom (several tasks': Welch's and Satterthwaite's).
    """
    biases, variances, spreads = [], [], []
    for left, size in zip(without, sizes, strict=True):
        share = (size / size.sum()).reshape(-1, *[1] * value.dim())
        deviation = (value - left) * (1 / share - 1)
        bias = -(share * deviation).sum(0)
        variance = ((deviation + bias).square() * share / (1 - share)).mean(0)
        biases.append(bias)
        variances.append(variance)
        spreads.append(variance.square() / (len(size) - 1))
    total = torch.stack(variances).sum(0)
    least = min(len(size) for size in sizes) - 1
    freedom = torch.where(total > 0, total.square() / torch.stack(spreads).sum(0), float(least))
    return Estimate(value, total.sqrt(), torch.stack(biases).sum(0), freedom)


def relative_error(mean: Tensor, group_means: Tensor, sizes: Tensor) -> float:
    """Return the relative standard error of a vector, ``‖SE‖₂ / ‖mean‖₂``.

    Args:
        mean: of all pictures, ``[K]``.
        group_means: ``[G, K]``.
        sizes: ``[G]``.

    Returns:
        The expected ``‖mean − truth‖₂ / ‖truth‖₂``; infinite for a mean of zero.
    """
    share = sizes / sizes.sum()
    squares = (group_means - mean).square().sum(1)
    norm = float(torch.linalg.vector_norm(mean))
    return math.sqrt(float((squares * share / (1 - share)).mean())) / norm if norm > 0 else math.inf


def t_quantile(probability: float, freedom: Tensor) -> Tensor:
    """Return quantiles of Student's t by its expansion around the normal: to 1e-4 at 7 degrees of freedom.

    Args:
        probability: in (0, 1).
        freedom: degrees of freedom, of any shape.

    Returns:
        Of the same shape.

    Source:
        Abramowitz and Stegun, 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
