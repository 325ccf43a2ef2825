"""How each distance is computed; the package's docstring has formulas and sources."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..words import DistanceName

if TYPE_CHECKING:
    from .reference import Reference


# Float64 elements of one [targets, filters] temporary: 512 kB stays in the cache (1.5 times as fast as
# 2 MB); a sums function holds at most twelve.
_BLOCK_ELEMENTS = 1 << 16
# d_sym is at its limit long before a scale ratio of 2**400, and the squares of r stay clear of underflow.
_MAX_SCALE_GAP = 400
# Rounding F to float32, as libraries keep it, moves log F by 6e-8; tasks that differ by less have no direction.
_ROUNDING = 1e-6


class Tasks(NamedTuple):
    """The embeddings of one argument, checked."""

    fisher: Tensor  # [T, K]
    prior: Tensor  # [T, K]; empty where the distance needs none
    names: list[str]
    who: str  # the public function, for messages
    reference: Reference | None = None  # where the distance needs one


class Vectors(NamedTuple):
    """What a distance compares: row t is ``values[t] · 2**exponent[t]``, which may not be representable."""

    values: Tensor  # [T, K]
    exponent: Tensor  # [T] int64

    def rows(self, rows: slice) -> Vectors:
        """Return some of the rows."""
        return Vectors(self.values[rows], self.exponent[rows])

    def row(self, t: int) -> Vectors:
        """Return one of them, as a table of one row."""
        return self.rows(slice(t, t + 1))


class Pairs(NamedTuple):
    """One source against a block of targets over a chunk of filters."""

    a: Tensor  # [1, k]
    b: Tensor  # [B, k]
    scale_a: Tensor  # [B, 1], powers of two that bring a and b to one scale
    scale_b: Tensor  # [B, 1]


@dataclass(frozen=True)
class Rule:
    """How one distance is computed: vectors, then sums over the filters of a pair, then the distance."""

    prepare: Callable[[Tasks], Vectors]
    sums: Callable[[Pairs], tuple[Tensor, ...]]  # each [B]
    finish: Callable[[Tensor, int], Tensor]  # sums [S, B] and K -> [B]
    symmetric: bool = True
    needs_prior: bool = False
    needs_reference: bool = False
    minus_trivial: bool = False  # subtract α times the source's distance to its own prior
    sym_of: Callable[[Tasks], Tensor] | None = None  # [T, K] whose d_sym it is: native code takes all pairs at once


def _power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent for int64 exponents in [-1022, 1023], exactly (torch.exp2 and pow may be one bit off)."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _normalised(values: Tensor) -> Vectors:
    """Take the power of two out of each row, so that its largest entry is in [½, 1); exact."""
    exponent = torch.frexp(values.amax(dim=1)).exponent.to(torch.int64)
    half = exponent // 2  # in two steps, because 2**1074 is no float64
    scaled = (values * _power_of_two(-half)[:, None]).mul_(_power_of_two(half - exponent)[:, None])
    return Vectors(scaled, exponent)


def unit_mean(fisher: Tensor) -> Tensor:
    """Return F over its mean, ``[T, K]``; in any unit, also where that mean is no float64."""
    values = _normalised(fisher).values
    return values.div_(values.mean(dim=1, keepdim=True))


def _unit_mean(tasks: Tasks) -> Tensor:
    return unit_mean(tasks.fisher)


def _log_precision(tasks: Tasks) -> Vectors:
    return _unscaled((tasks.fisher + tasks.prior).log_())


def _unscaled(values: Tensor) -> Vectors:
    return Vectors(values, torch.zeros(len(values), dtype=torch.int64))


def _unit_fisher(tasks: Tasks) -> Vectors:
    return _unit_length(_normalised(tasks.fisher).values, tasks)


def _unit_relative_variance(tasks: Tasks) -> Vectors:
    return _unit_length(tasks.prior / (tasks.fisher + tasks.prior), tasks)


def _unit_centred_variance(tasks: Tasks) -> Vectors:
    precision = tasks.fisher + tasks.prior
    variance = precision.amin(dim=1, keepdim=True) / precision  # in (0, 1]: the scale does not matter here
    return _unit_length(variance - variance.mean(dim=1, keepdim=True), tasks)


def _unit_difference(tasks: Tasks) -> Vectors:
    assert tasks.reference is not None
    away = tasks.reference.differences(tasks.fisher)
    away -= away.mean(dim=1, keepdim=True)
    return _unit_length(away, tasks, _ROUNDING, "log-Fishers that differ from the reference's, and not by a factor")


def _unit_length(
    values: Tensor, tasks: Tasks, least: float = 0.0, expected: str = "variances that differ between filters"
) -> Vectors:
    """Scale each row to length 1, once its root mean square is known to be more than `least`."""
    length = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    for name, one in zip(tasks.names, length.squeeze(1).tolist(), strict=True):
        if one <= least * math.sqrt(values.shape[1]):
            raise ValueError(f"{tasks.who}: expected {expected}; {name} has none.")
    return _unscaled(values / length)


def row_distances(rule: Rule, source: Vectors, targets: Vectors) -> Tensor:
    """Distances of one source ([1, K]) to T targets, ``[T]``, block by block."""
    T, K = targets.values.shape
    chunk = min(K, _BLOCK_ELEMENTS)
    block = max(1, _BLOCK_ELEMENTS // chunk)
    distances = torch.empty(T, dtype=torch.float64)
    for first in range(0, T, block):
        some = targets.rows(slice(first, first + block))
        gap = (source.exponent - some.exponent)[:, None]
        scale_a = _power_of_two(gap.clamp(-_MAX_SCALE_GAP, 0))
        scale_b = _power_of_two((-gap).clamp(-_MAX_SCALE_GAP, 0))
        sums = torch.zeros((), dtype=torch.float64)
        for left in range(0, K, chunk):
            filters = slice(left, left + chunk)
            pairs = Pairs(source.values[:, filters], some.values[:, filters], scale_a, scale_b)
            sums = sums + torch.stack(rule.sums(pairs))
        distances[first : first + block] = rule.finish(sums, K)
    return distances


def trivial_distances(tasks: Tasks, rule: Rule) -> Tensor:
    """d_sym(a, t₀) of every source and its own prior, ``[T, 1]``."""
    vectors = rule.prepare(tasks)
    trivial = rule.prepare(tasks._replace(fisher=tasks.prior))
    return torch.stack([row_distances(rule, vectors.row(row), trivial.row(row)) for row in range(len(tasks.names))])


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=1)


def _sym_sums(pairs: Pairs) -> tuple[Tensor, ...]:
    """Σ r², Σ q², Σ r·q with one division a filter.

    The shorter form from Σ r and Σ r² alone (q = 1 − r) cancels when one task's F is much the larger
    everywhere: at a ratio of 1e8 no digit is left. This one is right at every ratio.
    """
    r, q = pairs.a * pairs.scale_a, pairs.b * pairs.scale_b
    inverse = _inverse_total(r, q)
    r.mul_(inverse)
    q.mul_(inverse)
    return _dot(r, r), _dot(q, q), _dot(r, q)


def _inverse_total(a: Tensor, b: Tensor) -> Tensor:
    """1/(a + b), and 0 where both are dead, so that the filter counts for nothing."""
    total = a + b
    return torch.where(total >= torch.finfo(torch.float64).tiny, total.reciprocal(), 0.0)


def _sym_finish(sums: Tensor, K: int) -> Tensor:
    rr, qq, rq = sums
    return (1 - rq / (rr * qq).sqrt()).clamp_(0, 1)


def _entropy_sums(pairs: Pairs) -> tuple[Tensor, ...]:
    """Σ (log 2 − H(r)) over the live filters, and how many there are."""
    a, b = pairs.a * pairs.scale_a, pairs.b * pairs.scale_b
    total = a + b
    live = total > 0
    r, q = a / total, b / total
    terms = math.log(2) + (torch.xlogy(r, r) + torch.xlogy(q, q))
    return torch.where(live, terms, 0.0).sum(dim=1), live.sum(dim=1).to(torch.float64)


def _entropy_finish(sums: Tensor, K: int) -> Tensor:
    total, live = sums
    return (total / live).clamp_(0, math.log(2))


def _squared_difference(pairs: Pairs) -> tuple[Tensor, ...]:
    """Σ (x − y)²; half of it is 1 − cos of unit vectors: exactly 0 for equal ones, no cancellation near 0."""
    return ((pairs.a - pairs.b).square_().sum(dim=1),)


def _kl_sums(pairs: Pairs) -> tuple[Tensor, ...]:
    delta = pairs.b - pairs.a  # log v_a/v_b
    return ((torch.expm1(delta) - delta).sum(dim=1),)


def _larger_kl_sums(pairs: Pairs) -> tuple[Tensor, ...]:
    delta = (pairs.b - pairs.a).abs_()  # the larger direction is the one whose variance ratio exceeds one
    return ((torch.expm1(delta) - delta).sum(dim=1),)


def _log_cosh_sums(pairs: Pairs) -> tuple[Tensor, ...]:
    """Σ log cosh(Δ/2), in a form that neither overflows nor leaves a remainder at Δ = 0."""
    delta = (pairs.a - pairs.b).abs_()
    return ((delta / 2 + torch.log1p(torch.expm1(-delta) / 2)).sum(dim=1),)


def _half_sum(sums: Tensor, K: int) -> Tensor:
    return sums[0].clamp(min=0) / 2


def _half_mean(sums: Tensor, K: int) -> Tensor:
    return sums[0].clamp(min=0) / (2 * K)


def _sym(values: Callable[[Tasks], Tensor], **options: bool) -> Rule:
    """Return the rule of d_sym of the rows that `values` gives."""
    return Rule(lambda tasks: _normalised(values(tasks)), _sym_sums, _sym_finish, sym_of=values, **options)


RULES: dict[DistanceName, Rule] = {
    "sym": _sym(attrgetter("fisher")),
    "sym_scaled": _sym(_unit_mean),
    "asym": _sym(attrgetter("fisher"), needs_prior=True, minus_trivial=True),
    "asym_scaled": _sym(_unit_mean, needs_prior=True, minus_trivial=True),
    "cosine": Rule(_unit_fisher, _squared_difference, _half_sum),
    "normalized_cosine": Rule(_unit_relative_variance, _squared_difference, _half_sum, needs_prior=True),
    "correlation": Rule(_unit_centred_variance, _squared_difference, _half_sum, needs_prior=True),
    "entropy": Rule(lambda tasks: _normalised(tasks.fisher), _entropy_sums, _entropy_finish),
    "kl": Rule(_log_precision, _larger_kl_sums, _half_sum, needs_prior=True),
    "asymmetric_kl": Rule(_log_precision, _kl_sums, _half_sum, symmetric=False, needs_prior=True),
    "jsd": Rule(_log_precision, _log_cosh_sums, _half_mean, needs_prior=True),
    "library_correlation": Rule(_unit_difference, _squared_difference, _half_sum, needs_reference=True),
}
