"""Error bars by the delete-a-group jackknife: leave out one group of images at a time, and measure the change.

With θ of all N images, θ_(g) without the n_g of group g, w_g = n_g/N and G groups:

- pseudo-deviations d_g = (1/w_g − 1)·(θ − θ_(g)); for a mean, the distance of group g's own mean from it
- slope s = −Σ w_g·d_g: the bias, to first order in 1/N
- variance = 1/G Σ (d_g + s)²·w_g/(1 − w_g); for a mean it is unbiased, whatever the sizes of the groups

Noise makes distances larger. At a hundred images this bias is not proportional to 1/N; it follows E θ ≈ θ_true +
c/(N + b), which levels off as a bounded distance does. With half as many images the statistic grows by a step h (the
mean over balanced halves of the groups), which gives b: bias = s/(2 − s/h), and bias = s where h = s. The second-order
term indicates the size of higher orders, so its square is added to the squared standard error; it falls as 1/N².

For a statistic of several tasks, slopes and variances add up: each task's images are an independent sample. Two tasks
that share images have similar errors, which partly cancel in a distance; its standard error is then too large.

The images at hand are seen as a random sample of the task. The heads are held fixed, although they vary from sample to
sample. Where they are cross-fitted, deviations are widened by a measured factor, `CROSS_FIT_SPREAD`, so that intervals
cover them, too; those of one head fitted to all images (``cross_fit=None``) do not.

Source: Busing, Meijer, van der Leeden, Delete-m jackknife for unequal m, Statistics and Computing 9 (1999); degrees of
freedom of a sum of variances: Welch and Satterthwaite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GROUPS = 32
"""Groups of an embedding. With 31 degrees of freedom an interval is 4 % wider than with infinitely many; the float32
means take 1 MB for 8,512 filters. A power of two: see `half_samples`."""

FEWEST_GROUPS = 8
"""Of fewer images no error bars are kept: even eight give their own spread only to about a quarter."""

CROSS_FIT_SPREAD = 1.2
"""Standard deviation of the norm over draws with cross-fitted heads of their own, in units of that with heads held
fixed: the median of six tasks with 100 and 200 images; 0.8 to 1.4 (docs/how_many_images.md)."""

_STEEPEST = 1.75
"""Largest s/h that is used (at 2 the formula diverges): the bias is at most four times its first order."""


class Groups(NamedTuple):
    """A task's images in G groups: in random order, image i belongs to group i mod G."""

    mean: Tensor  # [K] float64, over all images
    means: Tensor  # [G, K] over each group's
    sizes: Tensor  # [G] float64, images in each group
    spread: float = 1.0  # what deviations from the mean are multiplied by, because the heads vary, too

    def without(self) -> Tensor:
        """Return the mean over all other groups, for each group left out: ``[G, K]`` float64, none negative."""
        odds = (self.sizes / (self.sizes.sum() - self.sizes))[:, None]
        # Negative where group means are rounded to float32, or widened.
        return (self.mean - (self.means - self.mean) * (self.spread * odds)).clamp_(min=0)

    def half(self, chosen: Tensor) -> Tensor:
        """Return the mean over some of the groups ``[G]`` bool, ``[K]`` float64, none negative."""
        mean = self.sizes[chosen] @ self.means[chosen].double() / self.sizes[chosen].sum()
        return mean if self.spread == 1 else (self.mean + self.spread * (mean - self.mean)).clamp_(min=0)

    def norm_error(self) -> float:
        """Return the standard error of the norm ``‖mean‖₁``."""
        share = self.sizes / self.sizes.sum()
        squares = (self.means.double().sum(1) - self.mean.sum()).square()
        return self.spread * math.sqrt(float((squares * share / (1 - share)).mean()))

    def relative_error(self) -> float:
        """Return ``‖SE‖₂ / ‖mean‖₂``, from the images alone; infinite for a mean of zero."""
        share = self.sizes / self.sizes.sum()
        squares = (self.means - self.mean).square().sum(1)
        norm = float(torch.linalg.vector_norm(self.mean))
        return math.sqrt(float((squares * share / (1 - share)).mean())) / norm if norm > 0 else math.inf


def num_groups(samples: int) -> int:
    """Return G: `GROUPS`, or the largest power of two that is at most the number of images."""
    return min(GROUPS, 1 << max(samples.bit_length() - 1, 0))


def half_samples(groups: int) -> Tensor:
    """Return balanced halves of the groups, each with its complement: ``[2·(G − 1), G]`` bool, G a power of two.

    The signs of a Hadamard matrix: over these halves every two groups are together equally often, so that h = s exactly
    for a statistic that is quadratic in the mean.

    Source:
        McCarthy, Pseudo-replication: half samples, Review of the International Statistical Institute 37 (1969).
    """
    signs = torch.ones(1, 1)
    while len(signs) < groups:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return torch.cat([signs[1:] > 0, signs[1:] < 0])


def halved(groups: Sequence[Groups]) -> Iterator[list[Tensor]]:
    """Yield every task's mean over a half of its groups, ``[K]`` float64 each, all tasks halved at once."""
    picks = [half_samples(len(one.sizes)) for one in groups]
    for number in range(max(len(pick) for pick in picks)):
        yield [one.half(pick[number % len(pick)]) for one, pick in zip(groups, picks, strict=True)]


def group_sizes(samples: int, groups: int) -> Tensor:
    """Return how many of `samples` images each group has, ``[G]`` float64."""
    return (samples // groups + (torch.arange(groups) < samples % groups)).double()


def checked_group_means(value: Tensor, mean: Tensor, samples: int) -> Tensor:
    """Return a private copy of the group means ``[G, K]`` of an embedding `mean`, once they are known to fit it."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"Embedding: expected group_means to be a torch.float32 tensor, got {got}.")
    K, shape = len(mean), tuple(value.shape)
    if shape != (G := num_groups(samples), K) or value.device.type != "cpu":
        raise ValueError(
            f"Embedding: expected group_means of shape [{G}, {K}] on the CPU for {samples} images, "
            f"got shape {list(shape)} on {value.device}."
        )
    sizes = group_sizes(samples, len(value))
    apart = (sizes @ value.double() / samples - mean).abs().max()
    if not apart <= 1e-5 * mean.max():  # float32 rounds to 1e-7; NaN and infinity are refused here too
        raise ValueError(
            f"Embedding: expected group_means whose mean is fisher, got one that differs by up to {float(apart):.3g}; "
            "deal the images to the groups in turn."
        )
    return value.detach().clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Estimate:
    """A number, or a tensor of numbers, with its standard error.

    Args:
        value: θ computed from all images, float64.
        standard_error: Of `value`, same shape and unit.
        bias: How much `value` is expected to exceed the true value because the number of images is finite.
        freedom: Degrees of freedom of `standard_error`, same shape.
        log: Whether intervals are symmetric on the log scale, as suits a positive value with a relative error.
    """

    value: Tensor
    standard_error: Tensor
    bias: Tensor
    freedom: Tensor
    log: bool = False

    @property
    def corrected(self) -> Tensor:
        """The value minus its bias. Near 0 a distance may become negative: clipping it would bias its mean."""
        return self.value - self.bias

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the ends of the confidence interval, ``corrected ± t·standard_error`` (or that of the logarithm).

        Args:
            confidence: How often such intervals contain the true value, in (0, 1).

        Returns:
            Lower and upper end, each of `value`'s shape.

        Raises:
            ValueError: If the confidence is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"Estimate.interval: expected a confidence between 0 and 1, got {confidence}.")
        half = t_quantile((1 + confidence) / 2, self.freedom) * self.standard_error
        if self.log:
            factor = (half / self.corrected).exp()
            return self.corrected / factor, self.corrected * factor
        return self.corrected - half, self.corrected + half


class Side(NamedTuple):
    """The contribution of one task's images to the error of a statistic."""

    slope: Tensor
    variance: Tensor
    freedom: Tensor


def side(value: Tensor, without: Tensor, sizes: Tensor) -> Side:
    """Return the contribution of one task, given a statistic without each of its groups, ``[G, *value.shape]``."""
    deviation, weight, slope = _deviations(value, without, sizes)
    variance = (deviation.square() * weight).sum(0)
    return Side(slope, variance, torch.full_like(variance, len(sizes) - 1))


def covariance(value: Tensor, without: Tensor, sizes: Tensor) -> Tensor:
    """Return the covariance ``[S, S]`` of statistics ``[S]`` that one task's images cause; see `side`."""
    deviation, weight, _ = _deviations(value, without, sizes)
    return (deviation * weight).T @ deviation


def _deviations(value: Tensor, without: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return d_g + s ``[G, …]``, what their squares weigh in the variance ``[G, 1, …]``, and s."""
    share = (sizes / sizes.sum()).reshape(-1, *[1] * value.dim())
    deviation = (value - without) * (1 / share - 1)
    slope = -(share * deviation).sum(0)
    return deviation + slope, share / (1 - share) / len(sizes), slope


def estimate(value: Tensor, sides: Sequence[Side], of_halves: Tensor, *, log: bool = False) -> Estimate:
    """Return a statistic of one or several tasks with its jackknife error, from every task's part.

    `of_halves` is the statistic of half as many images, mean over `half_samples`; `log` is that of `Estimate`.
    """
    slope, variance = (torch.stack(parts).sum(0) for parts in zip(*((s.slope, s.variance) for s in sides), strict=True))
    ratio = (slope / (of_halves - value)).nan_to_num(1.0).clamp(max=_STEEPEST)
    bias = slope / (2 - ratio)
    spread = torch.stack([s.variance.square() / s.freedom for s in sides]).sum(0)
    least = torch.stack([s.freedom for s in sides]).amin(0)
    freedom = torch.where(spread > 0, variance.square() / spread, least)
    return Estimate(value, (variance + (bias - slope).square()).sqrt(), bias, freedom, log)


def t_quantile(probability: float, freedom: Tensor) -> Tensor:
    """Return quantiles of Student's t by its expansion around the normal: to 1e-4 at 7 degrees of freedom.

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
    return z + torch.stack([term / freedom**power for power, term in enumerate(terms, 1)]).sum(0)
