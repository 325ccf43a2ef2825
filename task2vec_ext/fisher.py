"""The per-sample Fisher: a cotangent per picture, one backward pass, squared gradients per filter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from .capture import capture
from .folding import FoldedProbe, fold
from .jackknife import GROUPS, Groups, group_sizes, num_groups
from .probe import check_eval, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from .data import Batch
    from .embedding import Layer
    from .head import Head
    from .probe import Probe

Estimator = Literal["exact", "signed", "sampled", "empirical"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
AnyEstimator = Literal[Estimator, "variational"]
ANY_ESTIMATORS: tuple[AnyEstimator, ...] = get_args(AnyEstimator)

_FIRST_LOOK = 2 * GROUPS
"""Pictures before `sum_fisher` may stop: of one picture a group the spread is not known well enough to stop on."""


def cotangents(estimator: Estimator, logits: Tensor, labels: Tensor, index: Tensor, seed: int = 0) -> Iterator[Tensor]:
    """Yield cotangents v of the logits, one backward pass each, such that ``Σ E[(Jᵀv)²]`` is the Fisher's diagonal.

    With p = softmax(logits), for every v drawn: ``E[Σ vvᵀ] = diag(p) − ppᵀ`` ("empirical" excepted).

    - ``exact``: C passes, v_c = √p_c·(p − e_c). No variance.
    - ``signed``: v = √p ⊙ ε − p·(√p·ε), ε ∈ {−1, +1}^C. One pass, small variance.
    - ``sampled``: v = p − e_y with y ∼ p. One pass; heavy-tailed where the head is confident.
    - ``empirical``: v = p − e_y with y the data's label. One pass; **not** the Fisher.

    Args:
        estimator: which of them.
        logits: ``[B, C]``.
        labels: ``[B]`` int64, used by ``empirical`` alone.
        index: ``[B]``, the pictures' numbers: ε and y are functions of (seed, index), so that they depend neither on
            the batches nor on the order.
        seed: of ε and y.

    Yields:
        ``[B, C]`` in the dtype of `logits`.

    Source:
        Achille et al. 2019, §2 (sampled); Martens, Sutskever, Swersky, ICML 2012 (signed: curvature propagation).
    """
    p = logits.double().softmax(1)
    if estimator == "exact":
        for c in range(logits.shape[1]):
            v = p * p[:, c : c + 1].sqrt()
            v[:, c] -= p[:, c].sqrt()
            yield v.to(logits.dtype)
        return
    if estimator == "signed":
        signs = _per_picture(index, seed, lambda random: random.integers(0, 2, logits.shape[1]) * 2 - 1)
        signed = p.sqrt() * signs.to(p)
        yield (signed - p * signed.sum(1, keepdim=True)).to(logits.dtype)
        return
    if estimator == "sampled":
        labels = sample_labels(logits, index, seed)
    elif estimator != "empirical":
        raise ValueError(f"fisher_embed: expected estimator to be one of {', '.join(ESTIMATORS)}; got {estimator!r}.")
    yield p.scatter_add(1, labels[:, None], -torch.ones_like(p[:, :1])).to(logits.dtype)


def sample_labels(logits: Tensor, index: Tensor, seed: int = 0) -> Tensor:
    """Return labels y ∼ softmax(logits), ``[B]`` int64, a function of (seed, picture) alone.

    Args:
        logits: ``[B, C]``.
        index: ``[B]``, the pictures' numbers.
        seed: of the draw.

    Returns:
        ``[B]`` int64.
    """
    p = logits.double().softmax(1)
    uniform = _per_picture(index, seed, lambda random: random.random(1)).to(p)
    return (p.cumsum(1) < uniform).sum(1).clamp(max=logits.shape[1] - 1)


def _per_picture(index: Tensor, seed: int, draw: Callable[[np.random.Generator], np.ndarray[Any, Any]]) -> Tensor:
    """Rows of random numbers, each from a counter-based generator keyed by (seed, picture)."""
    rows = [draw(np.random.Generator(np.random.Philox(key=[seed, int(i)]))) for i in index]
    return torch.from_numpy(np.stack(rows))


def check_per_sample(probe: Probe, layers: Sequence[Layer], images: Tensor) -> None:
    """Raise unless every layer's gradient can be taken picture by picture: found out before the work, not after it.

    One forward and backward pass of one picture, twice in a batch: with a gradient at the first one's features alone,
    the other must have none anywhere.

    Args:
        probe: in eval mode; untouched.
        layers: as ``probe.layers()`` returns them.
        images: a preprocessed picture or more, ``[B, 3, H, W]``, on the probe's device.

    Raises:
        NotImplementedError: If a layer's weight is reused or used in an unknown way, or its rows are no pictures'.
        RuntimeError: If a layer takes no part in the features, or its input is changed in place.
    """
    with torch.enable_grad(), frozen(probe.module), capture(probe.module, layers, 2) as captured:
        features = probe.features(images[:1].repeat(2, 1, 1, 1))
        # Any direction will do but the special ones: LayerNorm has no gradient along the vector of ones.
        direction = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0)).to(features)
        torch.autograd.backward(features, torch.stack([direction, torch.zeros_like(direction)]))
        other = captured.take()[1]
    mixed = [layer.name for layer in layers if (other[layer.start : layer.stop] > 0).any()]
    if mixed:
        raise NotImplementedError(
            "fisher_embed: expected pictures that stay apart along the first axis of every layer's input, but in "
            f"{', '.join(mixed[:3])}{' …' if len(mixed) > 3 else ''} one picture's features depend on another's rows "
            "(sequences whose first axis is time, statistics over the batch?); pass layers=[…] with the others."
        )


def per_sample_fisher(
    probe: Probe, layers: Sequence[Layer], head: Head, batch: Batch, estimator: Estimator = "signed", seed: int = 0
) -> Tensor:
    """Return every picture's contribution to the Fisher, ``Σ_v ‖∂(v·logits_n)/∂w_o‖² / P``.

    Args:
        probe: in eval mode; untouched. `folding.fold` gives a faster one.
        layers: as ``probe.layers()`` returns them.
        head: fitted to the task, on the probe's device.
        batch: preprocessed pictures on the probe's device.
        estimator: see `cotangents`.
        seed: see `cotangents`.

    Returns:
        ``[B, K]`` float64, nats² per weight², on the probe's device. Its mean over a task is the embedding.

    Raises:
        ValueError: If the probe is in train mode or its output is not finite.
        NotImplementedError: If a layer has no per-sample gradient that is known; see `check_per_sample`.
    """
    check_eval(probe.module)
    with torch.enable_grad(), frozen(probe.module), capture(probe.module, layers, len(batch.images)) as captured:
        features = probe.features(batch.images)
        logits = head.logits(features.detach())
        if not torch.isfinite(logits).all():
            raise ValueError(
                f"fisher_embed: expected finite outputs of {probe.name}, got NaN or infinity for pictures "
                f"{batch.index.tolist()[:5]}…; check its weights and the preprocessing."
            )
        total: Tensor | None = None
        passes = logits.shape[1] if estimator == "exact" else 1
        for number, v in enumerate(cotangents(estimator, logits, batch.labels, batch.index, seed)):
            # The head is linear: its own backward is one product, outside autograd.
            torch.autograd.backward(features, (v @ head.weight).to(features.dtype), retain_graph=number < passes - 1)
            row = captured.take().double()
            total = row if total is None else total.add_(row)
    assert total is not None
    return total * _unit(probe, layers, total)


def _unit(probe: Probe, layers: Sequence[Layer], like: Tensor) -> Tensor:
    """Return what captured squares are multiplied by, ``[K]``: s² of a folded filter, over its number of weights."""
    unit = like.new_empty(layers[-1].stop)
    scale = probe.scale if isinstance(probe, FoldedProbe) else {}
    for layer in layers:
        factor = scale[layer.name].double().square() if layer.name in scale else 1.0
        unit[layer.start : layer.stop] = factor / layer.fan_in
    return unit


class FisherSum(NamedTuple):
    """Σ_n of `per_sample_fisher` over each group of pictures, dealt to the groups in turn like cards."""

    totals: Tensor
    """``[G, K]`` float64 on the CPU; G = `jackknife.num_groups`."""
    counts: Tensor
    """``[G]`` float64, pictures in each group."""

    @property
    def samples(self) -> int:
        """N, the number of pictures."""
        return int(self.counts.sum())

    @property
    def mean(self) -> Tensor:
        """F, ``[K]``."""
        return self.totals.sum(0) / self.samples

    @property
    def groups(self) -> Groups:
        """F, and F of each group's pictures."""
        return Groups(self.mean, self.totals / self.counts[:, None], self.counts)


def sum_fisher(
    probe: Probe,
    layers: Sequence[Layer],
    head: Head,
    batches: Iterable[Batch],
    estimator: Estimator = "signed",
    seed: int = 0,
    rel_error: float | None = None,
) -> FisherSum:
    """Return the sums of `per_sample_fisher` over all batches, accumulated in float64.

    Args:
        probe: in eval mode; untouched.
        layers: as ``probe.layers()`` returns them.
        head: fitted to the task, on the probe's device.
        batches: preprocessed pictures on the probe's device, in random order: picture number i goes to group i mod G.
        estimator: see `cotangents`.
        seed: see `cotangents`.
        rel_error: stop where the mean's relative standard error is below; None: take all.

    Returns:
        The sums and the numbers of pictures.

    Raises:
        RuntimeError: If the result is not finite.

    Note:
        Where it stops does not depend on the batches: it looks whenever all groups have equally many pictures.
    """
    totals, samples = torch.zeros(GROUPS, layers[-1].stop, dtype=torch.float64), 0

    def result() -> FisherSum:
        groups = num_groups(samples)  # divides GROUPS: picture i is in group i mod G still
        return FisherSum(totals.view(-1, groups, totals.shape[1]).sum(0), group_sizes(samples, groups))

    def enough() -> bool:
        if rel_error is None or samples % GROUPS or samples < _FIRST_LOOK:
            return False
        return result().groups.relative_error() <= rel_error

    for batch in batches:
        probe = fold(probe, layers, batch.images[:1])
        rows = per_sample_fisher(probe, layers, head, batch, estimator, seed).cpu()
        while len(rows) and not enough():
            first = samples % GROUPS
            part, rows = rows[: GROUPS - first], rows[GROUPS - first :]
            totals[first : first + len(part)] += part
            samples += len(part)
        if enough():
            break
    total = totals.sum(0)
    if samples and not math.isfinite(float(total.sum())):
        broken = next(layer.name for layer in layers if not torch.isfinite(total[layer.start : layer.stop]).all())
        raise RuntimeError(f"fisher_embed: the Fisher of layer {broken!r} overflowed; use float32 weights.")
    return result()
