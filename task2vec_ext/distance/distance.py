"""Distances between all pairs of embeddings, and between two sets of them; the package's docstring has formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeGuard, overload

import torch
from torch import Tensor

from ..embedding import Embedding
from ..jackknife import Estimate, Groups, Side, estimate, halved, side
from ..kernels.pairwise import sym_distances
from ..words import DistanceName
from .comparable import check_comparable
from .reference import Reference
from .rules import RULES, Rule, Tasks, row_distances, trivial_distances

Embeddings: TypeAlias = "Sequence[Embedding] | Tensor | Any"  # Any: what torch.as_tensor takes, say NumPy


@overload
def distance_matrix(
    embeddings: Embeddings,
    distance: DistanceName = "sym",
    *,
    alpha: float = 0.15,
    reference: Reference | None = None,
    with_error: Literal[False] = False,
) -> Tensor: ...
@overload
def distance_matrix(
    embeddings: Embeddings,
    distance: DistanceName = "sym",
    *,
    alpha: float = 0.15,
    reference: Reference | None = None,
    with_error: Literal[True],
) -> Estimate: ...
def distance_matrix(
    embeddings: Embeddings,
    distance: DistanceName = "sym",
    *,
    alpha: float = 0.15,
    reference: Reference | None = None,
    with_error: bool = False,
) -> Tensor | Estimate:
    """Return the distance of every embedding to every other.

    Args:
        embeddings: T embeddings that can be compared; for ``sym``, ``sym_scaled``, ``cosine``, ``entropy`` and
            ``library_correlation`` also a plain ``[T, K]`` tensor or array.
        distance: Which distance; `task2vec_ext.distance` has the formulas.
        alpha: Weight of the distance to the trivial task in ``asym`` and ``asym_scaled``; 0.15 is the paper's
            value for a ResNet-34 probe. Other distances ignore it.
        reference: What ``library_correlation`` measures differences from, and only it: `Library.reference`, or
            `Reference.of` these embeddings.
        with_error: Return an `Estimate` whose fields are such matrices: distances, standard errors and the bias due to
            noise. This takes 64 to 130 times the work: every distance is computed again without each group of
            images, and from halves of the groups. A reference is held fixed.

    Returns:
        ``[T, T]`` float64 on the CPU; row = source, column = target. Symmetric to the bit with zeros on the
        diagonal, except ``asymmetric_kl`` (not symmetric) and ``asym``, ``asym_scaled`` (neither).

    Raises:
        ValueError: If there are no embeddings, two of them cannot be compared, one is all zero, negative or not finite
            (the message names it), the distance is unknown, or lacks its reference.
        TypeError: If the embeddings are a plain tensor, and the distance needs priors or `with_error` is true.
    """
    who = "distance_matrix"
    rule = _rule(distance, alpha, reference, who)
    tasks = _gather(embeddings, distance, reference, who)
    if not with_error:
        return _all_pairs(tasks, rule, alpha)
    if not _are_embeddings(embeddings):
        raise TypeError(
            f"{who}: expected Embedding objects where with_error=True, got {type(embeddings).__name__}; a plain tensor "
            "has no error bars."
        )
    return _with_error(tasks, [item.groups for item in embeddings], rule, alpha)


def _all_pairs(tasks: Tasks, rule: Rule, alpha: float) -> Tensor:
    """Distances of every task to every other, ``[T, T]``."""
    if rule.sym_of:
        result = sym_distances(rule.sym_of(tasks)).cpu()
    else:
        vectors = rule.prepare(tasks)
        count = len(tasks.names)
        result = torch.zeros(count, count, dtype=torch.float64)
        for row in range(count):
            # The lower triangle is a copy of the upper one: half the work, and symmetric to the bit.
            start = row + 1 if rule.symmetric else 0
            result[row, start:] = row_distances(rule, vectors.row(row), vectors.rows(slice(start, None)))
        if rule.symmetric:
            result += result.T.clone()
    return result - alpha * trivial_distances(tasks, rule) if rule.minus_trivial else result


def cross_distances(
    a: Embeddings,
    b: Embeddings,
    distance: DistanceName = "sym",
    *,
    alpha: float = 0.15,
    reference: Reference | None = None,
) -> Tensor:
    """Return the distance of every embedding in ``a`` to every one in ``b``.

    Args:
        a: A sources (experts), as for `distance_matrix`.
        b: B targets (tasks) that can be compared with ``a``.
        distance: Which distance; `task2vec_ext.distance` has the formulas.
        alpha: Weight of the distance to the trivial task in ``asym`` and ``asym_scaled``.
        reference: As for `distance_matrix`.

    Returns:
        ``[A, B]`` float64 on the CPU; row = source, column = target. Up to rounding, the same numbers as in
        the `distance_matrix` of all of them.

    Raises:
        ValueError: If `distance_matrix` would raise it.
        TypeError: If `distance_matrix` would raise it.
    """
    who = "cross_distances"
    rule = _rule(distance, alpha, reference, who)
    sources, targets = (_gather(some, distance, reference, who) for some in (a, b))
    if _are_embeddings(a) and _are_embeddings(b):
        check_comparable([*a, *b])
        if rule.needs_prior:
            _check_priors([*a, *b], who)
    if sources.fisher.shape[1] != targets.fisher.shape[1]:
        raise ValueError(
            f"{who}: expected a and b with equally many filters, got {list(sources.fisher.shape)} and "
            f"{list(targets.fisher.shape)}; embed both with the same probe and settings."
        )
    return _across(sources, targets, rule, alpha)


def _across(sources: Tasks, targets: Tasks, rule: Rule, alpha: float) -> Tensor:
    """Distances of every source to every target, ``[A, B]``."""
    if rule.sym_of:
        values = rule.sym_of(sources)
        result = sym_distances(values, rule.sym_of(targets).to(values.device)).cpu()
    else:
        vectors, others = rule.prepare(sources), rule.prepare(targets)
        result = torch.stack([row_distances(rule, vectors.row(row), others) for row in range(len(sources.names))])
    return result - alpha * trivial_distances(sources, rule) if rule.minus_trivial else result


def _with_error(tasks: Tasks, groups: Sequence[Groups], rule: Rule, alpha: float) -> Estimate:
    """Every pair's distance again without each group of either task, and of halves of both."""
    value = _all_pairs(tasks, rule, alpha)
    ways = [Side(*(torch.zeros_like(value) for _ in range(3))) for _ in ("as source", "as target")]
    for i, group in enumerate(groups):
        left = _resampled(tasks, [i] * len(group.sizes), group.without())
        # The distance of a task to itself is 0 whatever its images, but for the trivial task's part.
        own = -alpha * trivial_distances(left, rule)[:, 0] if rule.minus_trivial else 0.0
        as_source = _across(left, tasks, rule, alpha)
        both = rule.symmetric and not rule.minus_trivial
        as_target = as_source.clone() if both else _across(tasks, left, rule, alpha).T
        as_source[:, i], as_target[:, i] = own, value[i, i]
        for part, row in zip(ways[0], side(value[i], as_source, group.sizes), strict=True):
            part[i] = row
        for part, column in zip(ways[1], side(value[:, i], as_target, group.sizes), strict=True):
            part[:, i] = column
    # Summed in passing: all of them at once would be 62 matrices.
    total, count = torch.zeros_like(value), 0
    for halves in halved(groups):
        total += _all_pairs(_resampled(tasks, range(len(groups)), torch.stack(halves)), rule, alpha)
        count += 1
    return estimate(value, ways, total / count)


def _resampled(tasks: Tasks, which: Sequence[int], fisher: Tensor) -> Tasks:
    """Return the tasks of these numbers with the Fisher ``[len(which), K]`` of some of their images."""
    names = [f"{tasks.names[i]}, some images left out," for i in which]
    _check_rows(fisher, 0.0, names, f"{tasks.who}: expected finite entries, none negative and not all zero")
    prior = tasks.prior[list(which)] if len(tasks.prior) else tasks.prior
    return tasks._replace(fisher=fisher, prior=prior, names=names)


def _rule(distance: DistanceName, alpha: float, reference: Reference | None, who: str) -> Rule:
    if distance not in RULES:
        raise ValueError(f"{who}: expected distance to be one of {', '.join(RULES)}; got {distance!r}.")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"{who}: expected alpha to be finite and not negative, got {alpha}.")
    if (reference is not None) != RULES[distance].needs_reference:
        raise ValueError(
            f"{who}: expected reference (on the command line --reference) with 'library_correlation' and with no "
            f"other distance, got {reference} with {distance!r}; library.reference() and Reference.of(embeddings) "
            "make one."
        )
    return RULES[distance]


def _are_embeddings(value: Embeddings) -> TypeGuard[Sequence[Embedding]]:
    return isinstance(value, Sequence) and {True} == {isinstance(item, Embedding) for item in value}


def _gather(embeddings: Embeddings, distance: DistanceName, reference: Reference | None, who: str) -> Tasks:
    """Stack the embeddings; refuse those that have no distance to anything."""
    needs_prior = RULES[distance].needs_prior
    prior = torch.empty(0)
    if _are_embeddings(embeddings):
        check_comparable(embeddings)
        if reference is not None:
            check_comparable([reference, embeddings[0]])
        names = [f"embedding {item.name!r}" for item in embeddings]
        fisher = torch.stack([item.fisher for item in embeddings])
        if needs_prior:
            _check_priors(embeddings, who)
            prior = torch.stack([item.prior for item in embeddings])
            _check_rows(prior, math.ulp(0.0), names, f"{who}: expected priors that are finite and positive")
    elif isinstance(embeddings, Embedding) or (needs_prior and len(embeddings) > 0):
        without = ", ".join(name for name, rule in RULES.items() if not rule.needs_prior)
        raise TypeError(
            f"{who}: expected a sequence of Embedding objects for distance {distance!r}, got "
            f"{type(embeddings).__name__}; the distances that take a plain [T, K] tensor are {without}."
        )
    else:
        device = embeddings.device if isinstance(embeddings, Tensor) and RULES[distance].sym_of else "cpu"
        fisher = torch.as_tensor(embeddings, dtype=torch.float64, device=device).detach()
        if fisher.dim() != 2 or fisher.numel() == 0:
            raise ValueError(
                f"{who}: expected one or more embeddings, or a tensor of shape [T, K] with T and K >= 1; "
                f"got shape {list(fisher.shape)}."
            )
        if reference is not None and fisher.shape[1] != len(reference):
            raise ValueError(
                f"{who}: expected rows of {len(reference)} filters, as {reference} has, got {fisher.shape[1]}."
            )
        names = [f"row {index}" for index in range(len(fisher))]
    _check_rows(fisher, 0.0, names, f"{who}: expected finite entries, none negative and not all zero")
    return Tasks(fisher, prior, names, who, reference)


def _check_rows(values: Tensor, at_least: float, names: list[str], message: str) -> None:
    bounds = torch.stack(torch.aminmax(values, dim=1), 1)  # both NaN where the row has one
    for name, (low, high) in zip(names, bounds.tolist(), strict=True):
        if not (low >= at_least and 0 < high < math.inf):
            zero = " (norm 0: the probe saw no difference between its classes); leave it out" * (low == high == 0)
            raise ValueError(f"{message}; {name} has entries from {low:g} to {high:g}{zero}.")


def _check_priors(embeddings: Sequence[Embedding], who: str) -> None:
    """Refuse priors of different strength: c of t₀ = c·λ²."""
    strengths = {item.name: item.prior_scale for item in embeddings}
    if len(set(strengths.values())) > 1:
        raise ValueError(f"{who}: expected embeddings with one prior_scale, got {strengths}.")
