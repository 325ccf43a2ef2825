"""Distances between tasks: smaller is closer.

With F the Fisher of an embedding, t₀ its prior, p = F + t₀ its precision, v = 1/p its variance, and for a
pair r = F_a/(F_a + F_b), q = F_b/(F_a + F_b), Δ = log p_a − log p_b (all per filter; d_cos = 1 − cosine):

================= ================================================== ========== ==========================
kind              formula                                            range      source
================= ================================================== ========== ==========================
sym               d_cos(r, q)                                        [0, 1]     paper; released ``cosine``
sym_scaled        sym of F scaled to unit mean                       [0, 1]     this project
asym              sym(a, b) − α·sym(a, t₀), a the source             [−α, 1]    paper
asym_scaled       asym of F and t₀ scaled to unit mean               [−α, 1]    this project
cosine            d_cos(F_a, F_b)                                    [0, 1]     none: for reference
normalized_cosine d_cos(v_a·t₀, v_b·t₀)                              [0, 1]     released code
correlation       1 − Pearson correlation of v_a, v_b                [0, 2]     released code
entropy           log 2 − mean of H(r), H binary entropy             [0, log 2] released code
kl                Σ max(KL(a‖b), KL(b‖a)) = ½ Σ (exp|Δ| − 1 − |Δ|)   [0, ∞)     released code
asymmetric_kl     Σ KL(a‖b) = ½ Σ (exp(−Δ) − 1 + Δ)                  [0, ∞)     released code
jsd               mean ½(KL(a‖m) + KL(b‖m)) = mean ½ log cosh(Δ/2)   [0, ∞)     released code
================= ================================================== ========== ==========================

KL(a‖b) is that of two zero-mean Gaussians with variances v_a and v_b; m is the one with ½(v_a + v_b).
"Released code" is ``task_similarity.py`` of awslabs/aws-cv-task2vec. Beware of one name: its ``cosine`` is
d_sym, so ``"sym"`` here; its ``kl`` takes the larger direction filter by filter, then sums. On purpose:

- Its r adds ε = 1e-8 to the denominator, which is not scale-free. Here ε → 0: a filter that is dead in both
  tasks (F_a = F_b = 0) counts for nothing, in no sum and no mean, and F may be in any unit.
- Its variances are 1/F, infinite where a filter is dead (F = 0). Here they are 1/(F + t₀), the posterior
  variance (as its variational embeddings have it), so ``kl``, ``asymmetric_kl``, ``jsd``, ``correlation`` and
  ``normalized_cosine`` need embeddings with a prior.

All in float64, and the result on the CPU; but ``sym``, ``asym`` and their scaled twins of many embeddings (2**28
pairs × filters and more) take d_sym in float32 where that is right to 1e-6, and in float64 elsewhere: distances
under 1e-3, embeddings of very different scale. Beyond a float64 copy of the embeddings (and for those kinds a
float32 one, or two where filters are dead) and the result the workspace stays under 32 MB, whatever T and K. Those
kinds of plain tensors on a GPU are computed there. Same input, same bits, on any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor

from ._pairwise import sym_distances
from .embedding import Embedding, check_comparable

DistanceKind = Literal[
    "sym",
    "sym_scaled",
    "asym",
    "asym_scaled",
    "cosine",
    "normalized_cosine",
    "correlation",
    "entropy",
    "kl",
    "asymmetric_kl",
    "jsd",
]
Embeddings: TypeAlias = "Sequence[Embedding] | Tensor | Any"  # Any: what torch.as_tensor takes, say NumPy

# Float64 elements of one [targets, filters] temporary: 512 kB stays in the cache (1.5 times as fast as
# 2 MB); a sums function holds at most twelve.
_BLOCK_ELEMENTS = 1 << 16
# d_sym is at its limit long before a scale ratio of 2**400, and the squares of r stay clear of underflow.
_MAX_SCALE_GAP = 400


class _Tasks(NamedTuple):
    """The embeddings of one argument, checked."""

    fisher: Tensor  # [T, K]
    prior: Tensor  # [T, K]; empty where the kind needs none
    names: list[str]
    who: str  # the public function, for messages


class _Vectors(NamedTuple):
    """What a kind compares: row t is ``values[t] · 2**exponent[t]``, which may not be representable."""

    values: Tensor  # [T, K]
    exponent: Tensor  # [T] int64

    def rows(self, rows: slice) -> _Vectors:
        return _Vectors(self.values[rows], self.exponent[rows])

    def row(self, t: int) -> _Vectors:
        return self.rows(slice(t, t + 1))


class _Pairs(NamedTuple):
    """One source against a block of targets over a chunk of filters."""

    a: Tensor  # [1, k]
    b: Tensor  # [B, k]
    scale_a: Tensor  # [B, 1], powers of two that bring a and b to one scale
    scale_b: Tensor  # [B, 1]


@dataclass(frozen=True)
class _Rule:
    """How one kind is computed: vectors, then sums over the filters of a pair, then the distance."""

    prepare: Callable[[_Tasks], _Vectors]
    sums: Callable[[_Pairs], tuple[Tensor, ...]]  # each [B]
    finish: Callable[[Tensor, int], Tensor]  # sums [S, B] and K -> [B]
    symmetric: bool = True
    needs_prior: bool = False
    minus_trivial: bool = False  # subtract α times the source's distance to its own prior
    sym_of: Callable[[_Tasks], Tensor] | None = None  # [T, K] whose d_sym it is: native code takes all pairs at once


def distance_matrix(embeddings: Embeddings, kind: DistanceKind = "sym", *, alpha: float = 0.15) -> Tensor:
    """Return the distance of every embedding to every other.

    Args:
        embeddings: T comparable embeddings; for ``sym``, ``sym_scaled``, ``cosine`` and ``entropy`` also a
            plain ``[T, K]`` tensor or array.
        kind: Which distance; the module's table has the formulas.
        alpha: Weight of the distance to the trivial task in ``asym`` and ``asym_scaled``; 0.15 is the paper's
            value for a ResNet-34 probe. Other kinds do not use it.

    Returns:
        ``[T, T]`` float64 on the CPU; row = source, column = target. Symmetric to the bit with zeros on the
        diagonal, except ``asymmetric_kl`` (not symmetric) and ``asym``, ``asym_scaled`` (nor zero).

    Raises:
        ValueError: There are no embeddings; two of them do not compare, or one is all zero, negative or not
            finite (they are named); the kind is unknown.
        TypeError: The kind needs priors and the embeddings are a plain tensor.
    """
    who = "distance_matrix"
    rule = _rule(kind, alpha, who)
    tasks = _gather(embeddings, kind, who)
    if rule.sym_of:
        result = sym_distances(rule.sym_of(tasks)).cpu()
    else:
        vectors = rule.prepare(tasks)
        count = len(tasks.names)
        result = torch.zeros(count, count, dtype=torch.float64)
        for row in range(count):
            # The lower triangle is a copy of the upper one: half the work, and symmetric to the bit.
            start = row + 1 if rule.symmetric else 0
            result[row, start:] = _row(rule, vectors.row(row), vectors.rows(slice(start, None)))
        if rule.symmetric:
            result += result.T.clone()
    return result - alpha * _trivial_distances(tasks, rule) if rule.minus_trivial else result


def cross_distances(a: Embeddings, b: Embeddings, kind: DistanceKind = "sym", *, alpha: float = 0.15) -> Tensor:
    """Return the distance of every embedding in ``a`` to every one in ``b``.

    Args:
        a: A sources (experts), as ``distance_matrix`` takes them.
        b: B targets (tasks), comparable with ``a``.
        kind: Which distance; the module's table has the formulas.
        alpha: Weight of the distance to the trivial task in ``asym`` and ``asym_scaled``.

    Returns:
        ``[A, B]`` float64 on the CPU; row = source, column = target. The same numbers, to rounding, as
        ``distance_matrix`` of all of them has.

    Raises:
        ValueError: As ``distance_matrix``.
        TypeError: As ``distance_matrix``.
    """
    who = "cross_distances"
    rule = _rule(kind, alpha, who)
    sources, targets = _gather(a, kind, who), _gather(b, kind, who)
    if _are_embeddings(a) and _are_embeddings(b):
        _check_recipes([*a, *b], rule.needs_prior, who)
    if sources.fisher.shape[1] != targets.fisher.shape[1]:
        raise ValueError(
            f"{who}: expected a and b with equally many filters, got {list(sources.fisher.shape)} and "
            f"{list(targets.fisher.shape)}; embed both with the same probe and settings."
        )
    if rule.sym_of:
        values = rule.sym_of(sources)
        result = sym_distances(values, rule.sym_of(targets).to(values.device)).cpu()
    else:
        vectors, others = rule.prepare(sources), rule.prepare(targets)
        result = torch.stack([_row(rule, vectors.row(row), others) for row in range(len(sources.names))])
    return result - alpha * _trivial_distances(sources, rule) if rule.minus_trivial else result


def _rule(kind: DistanceKind, alpha: float, who: str) -> _Rule:
    if kind not in _RULES:
        raise ValueError(f"{who}: expected kind to be one of {', '.join(_RULES)}; got {kind!r}.")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"{who}: expected alpha to be finite and not negative, got {alpha}.")
    return _RULES[kind]


def _are_embeddings(value: Embeddings) -> TypeGuard[Sequence[Embedding]]:
    return isinstance(value, Sequence) and {True} == {isinstance(item, Embedding) for item in value}


def _gather(embeddings: Embeddings, kind: DistanceKind, who: str) -> _Tasks:
    """Stack the embeddings and refuses what has no distance to anything, by name."""
    needs_prior = _RULES[kind].needs_prior
    prior = torch.empty(0)
    if _are_embeddings(embeddings):
        _check_recipes(embeddings, needs_prior, who)
        names = [f"embedding {item.name!r}" for item in embeddings]
        fisher = torch.stack([item.fisher for item in embeddings])
        if needs_prior:
            prior = torch.stack([item.prior for item in embeddings])
            _check_rows(prior, math.ulp(0.0), names, f"{who}: expected priors that are finite and positive")
    elif isinstance(embeddings, Embedding) or (needs_prior and len(embeddings) > 0):
        without = ", ".join(name for name, rule in _RULES.items() if not rule.needs_prior)
        raise TypeError(
            f"{who}: expected a sequence of Embedding objects for kind {kind!r}, got "
            f"{type(embeddings).__name__}; the kinds that take a plain [T, K] tensor are {without}."
        )
    else:
        device = embeddings.device if isinstance(embeddings, Tensor) and _RULES[kind].sym_of else "cpu"
        fisher = torch.as_tensor(embeddings, dtype=torch.float64, device=device).detach()
        if fisher.dim() != 2 or fisher.numel() == 0:
            raise ValueError(
                f"{who}: expected one or more embeddings, or a tensor of shape [T, K] with T and K >= 1; "
                f"got shape {list(fisher.shape)}."
            )
        names = [f"row {index}" for index in range(len(fisher))]
    _check_rows(fisher, 0.0, names, f"{who}: expected finite entries, none negative and not all zero")
    return _Tasks(fisher, prior, names, who)


def _check_rows(values: Tensor, at_least: float, names: list[str], message: str) -> None:
    bounds = torch.stack(torch.aminmax(values, dim=1), 1)  # both NaN where the row has one
    for name, (low, high) in zip(names, bounds.tolist(), strict=True):
        if not (low >= at_least and 0 < high < math.inf):
            raise ValueError(f"{message}; {name} has entries from {low:g} to {high:g}.")


def _check_recipes(embeddings: Sequence[Embedding], needs_prior: bool, who: str) -> None:
    """Comparable embeddings, and where priors enter the distance, priors of one strength."""
    check_comparable(embeddings)
    strengths = {item.name: item.recipe.get("prior_scale") for item in embeddings}
    if needs_prior and len({str(strength) for strength in strengths.values()}) > 1:
        raise ValueError(f"{who}: expected embeddings with one prior_scale in the recipe, got {strengths}.")


def _power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent for int64 exponents in [-1022, 1023], exactly (torch.exp2 and pow may be one bit off)."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _normalised(values: Tensor) -> _Vectors:
    """Take the power of two out of each row, so that its largest entry is in [½, 1); exact."""
    exponent = torch.frexp(values.amax(dim=1)).exponent.to(torch.int64)
    half = exponent // 2  # in two steps, because 2**1074 is no float64
    scaled = (values * _power_of_two(-half)[:, None]).mul_(_power_of_two(half - exponent)[:, None])
    return _Vectors(scaled, exponent)


def _fisher(tasks: _Tasks) -> _Vectors:
    return _normalised(tasks.fisher)


def _plain(tasks: _Tasks) -> Tensor:
    return tasks.fisher


def _unit_mean(tasks: _Tasks) -> Tensor:
    values = _normalised(tasks.fisher).values
    return values.div_(values.mean(dim=1, keepdim=True))


def _unit_mean_fisher(tasks: _Tasks) -> _Vectors:
    return _normalised(_unit_mean(tasks))


def _log_precision(tasks: _Tasks) -> _Vectors:
    return _unscaled((tasks.fisher + tasks.prior).log_())


def _unscaled(values: Tensor) -> _Vectors:
    return _Vectors(values, torch.zeros(len(values), dtype=torch.int64))


def _unit_fisher(tasks: _Tasks) -> _Vectors:
    return _unit_length(_normalised(tasks.fisher).values, tasks)


def _unit_relative_variance(tasks: _Tasks) -> _Vectors:
    return _unit_length(tasks.prior / (tasks.fisher + tasks.prior), tasks)


def _unit_centred_variance(tasks: _Tasks) -> _Vectors:
    precision = tasks.fisher + tasks.prior
    variance = precision.amin(dim=1, keepdim=True) / precision  # in (0, 1]: the scale does not matter here
    return _unit_length(variance - variance.mean(dim=1, keepdim=True), tasks)


def _unit_length(values: Tensor, tasks: _Tasks) -> _Vectors:
    length = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    for name, one in zip(tasks.names, length, strict=True):
        if one == 0:
            raise ValueError(f"{tasks.who}: expected variances that differ between filters; {name} has one.")
    return _unscaled(values / length)


def _row(rule: _Rule, source: _Vectors, targets: _Vectors) -> Tensor:
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
            pairs = _Pairs(source.values[:, filters], some.values[:, filters], scale_a, scale_b)
            sums = sums + torch.stack(rule.sums(pairs))
        distances[first : first + block] = rule.finish(sums, K)
    return distances


def _trivial_distances(tasks: _Tasks, rule: _Rule) -> Tensor:
    """d_sym(a, t₀) of every source and its own prior, ``[T, 1]``."""
    vectors = rule.prepare(tasks)
    trivial = rule.prepare(tasks._replace(fisher=tasks.prior))
    return torch.stack([_row(rule, vectors.row(row), trivial.row(row)) for row in range(len(tasks.names))])


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=1)


def _sym_sums(pairs: _Pairs) -> tuple[Tensor, ...]:
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


def _entropy_sums(pairs: _Pairs) -> tuple[Tensor, ...]:
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


def _squared_difference(pairs: _Pairs) -> tuple[Tensor, ...]:
    """Σ (x − y)²; half of it is 1 − cos of unit vectors: exactly 0 for equal ones, no cancellation near 0."""
    return ((pairs.a - pairs.b).square_().sum(dim=1),)


def _kl_sums(pairs: _Pairs) -> tuple[Tensor, ...]:
    delta = pairs.b - pairs.a  # log v_a/v_b
    return ((torch.expm1(delta) - delta).sum(dim=1),)


def _larger_kl_sums(pairs: _Pairs) -> tuple[Tensor, ...]:
    delta = (pairs.b - pairs.a).abs_()  # the larger direction is the one whose variance ratio exceeds one
    return ((torch.expm1(delta) - delta).sum(dim=1),)


def _log_cosh_sums(pairs: _Pairs) -> tuple[Tensor, ...]:
    """Σ log cosh(Δ/2), in a form that neither overflows nor leaves a remainder at Δ = 0."""
    delta = (pairs.a - pairs.b).abs_()
    return ((delta / 2 + torch.log1p(torch.expm1(-delta) / 2)).sum(dim=1),)


def _half_sum(sums: Tensor, K: int) -> Tensor:
    return sums[0].clamp(min=0) / 2


def _half_mean(sums: Tensor, K: int) -> Tensor:
    return sums[0].clamp(min=0) / (2 * K)


_RULES: dict[DistanceKind, _Rule] = {
    "sym": _Rule(_fisher, _sym_sums, _sym_finish, sym_of=_plain),
    "sym_scaled": _Rule(_unit_mean_fisher, _sym_sums, _sym_finish, sym_of=_unit_mean),
    "asym": _Rule(_fisher, _sym_sums, _sym_finish, needs_prior=True, minus_trivial=True, sym_of=_plain),
    "asym_scaled": _Rule(
        _unit_mean_fisher, _sym_sums, _sym_finish, needs_prior=True, minus_trivial=True, sym_of=_unit_mean
    ),
    "cosine": _Rule(_unit_fisher, _squared_difference, _half_sum),
    "normalized_cosine": _Rule(_unit_relative_variance, _squared_difference, _half_sum, needs_prior=True),
    "correlation": _Rule(_unit_centred_variance, _squared_difference, _half_sum, needs_prior=True),
    "entropy": _Rule(_fisher, _entropy_sums, _entropy_finish),
    "kl": _Rule(_log_precision, _larger_kl_sums, _half_sum, needs_prior=True),
    "asymmetric_kl": _Rule(_log_precision, _kl_sums, _half_sum, symmetric=False, needs_prior=True),
    "jsd": _Rule(_log_precision, _log_cosh_sums, _half_mean, needs_prior=True),
}
