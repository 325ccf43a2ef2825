"""The per-sample Fisher: a cotangent per picture, one backward pass, squared gradients per filter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

from .capture import capture
from .folding import FoldedProbe, fold
from .losses import CrossEntropy, Loss, per_picture
from .probe import check_eval, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from .data import Batch
    from .embedding import Layer
    from .head import Head
    from .probe import Probe

Estimator = Literal["exact", "signed", "sampled", "empirical"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


def cotangents(
    estimator: Estimator,
    logits: Tensor,
    targets: Tensor,
    index: Tensor,
    seed: int = 0,
    loss: Loss = CrossEntropy(),  # noqa: B008 - frozen
) -> Iterator[Tensor]:
    """Yield cotangents v of the logits, one backward pass each, such that ``Σ E[(Jᵀv)²]`` is the Fisher's diagonal.

    With A the loss's root, ``E[Σ vvᵀ] = AAᵀ`` for every v drawn ("empirical" excepted): for cross-entropy and p =
    softmax(logits) that is diag(p) − ppᵀ.

    - ``exact``: a pass for every logit, v_c = A·e_c (cross-entropy: √p_c·(e_c − p)). No variance.
    - ``signed``: v = Aε, ε ∈ {−1, +1}^C (cross-entropy: √p ⊙ ε − p·(√p·ε)). One pass, small variance.
    - ``sampled``: v = −∇ log p(y|x) with y drawn from the model (cross-entropy: p − e_y). One pass; heavy-tailed where
      the head is confident.
    - ``empirical``: the same with y the data's target. One pass; **not** the Fisher.

    Args:
        estimator: which of them.
        logits: ``[B, …, C]``.
        targets: ``[B, …]``, as ``loss.prepare`` returns them; their values matter to ``empirical`` alone.
        index: ``[B]``, the pictures' numbers: ε and y are functions of (seed, index), so that they depend neither on
            the batches nor on the order.
        seed: of ε and y.
        loss: fitted, whose distribution is meant.

    Yields:
        ``[B, …, C]`` in the dtype of `logits`.

    Source:
        Achille et al. 2019, §2 (sampled); Martens, Sutskever, Swersky, ICML 2012 (signed: curvature propagation).
    """
    shape = logits.shape[1:]
    if estimator == "exact":
        for c in range(shape.numel()):
            one = torch.zeros(shape.numel(), dtype=torch.float64, device=logits.device)
            one[c] = 1
            yield loss.root(logits, targets, one.reshape(shape)).to(logits.dtype)
        return
    if estimator == "signed":
        signs = per_picture(index, seed, lambda random: random.integers(0, 2, shape) * 2 - 1)
        yield loss.root(logits, targets, signs).to(logits.dtype)
        return
    if estimator == "sampled":
        targets = loss.sample(logits, targets, index, seed)
    elif estimator != "empirical":
        raise ValueError(f"fisher_embed: expected estimator to be one of {', '.join(ESTIMATORS)}; got {estimator!r}.")
    yield loss.residual(logits, targets).to(logits.dtype)


def per_sample_fisher(
    probe: Probe, layers: Sequence[Layer], head: Head, batch: Batch, estimator: Estimator = "signed", seed: int = 0
) -> Tensor:
    """Return every picture's contribution to the Fisher, ``Σ_v ‖∂(v·logits_n)/∂w_o‖² / P``.

    Args:
        probe: in eval mode; untouched. `folding.fold` gives a faster one.
        layers: as ``probe.layers()`` returns them.
        head: fitted to the task, on the probe's device.
        batch: preprocessed pictures on the probe's device, labels as the head's loss prepared them.
        estimator: see `cotangents`.
        seed: see `cotangents`.

    Returns:
        ``[B, K]`` float64, nats² per weight², on the probe's device. Its mean over a task is the embedding.

    Raises:
        ValueError: If the probe is in train mode or its output is not finite.
    """
    check_eval(probe.module)
    with torch.enable_grad(), frozen(probe.module), capture(probe.module, layers) as captured:
        features = probe.features(batch.images)
        logits = head.logits(features.detach())
        if not torch.isfinite(logits).all():
            raise ValueError(
                f"fisher_embed: expected finite outputs of {probe.name}, got NaN or infinity for pictures "
                f"{batch.index.tolist()[:5]}…; check its weights and the preprocessing."
            )
        total: Tensor | None = None
        passes = logits[0].numel() if estimator == "exact" else 1
        for number, v in enumerate(cotangents(estimator, logits, batch.labels, batch.index, seed, head.loss)):
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
    """Σ_n of `per_sample_fisher` and how many pictures went in."""

    total: Tensor
    """``[K]`` float64 on the CPU."""
    samples: int

    @property
    def mean(self) -> Tensor:
        """F, ``[K]``."""
        return self.total / self.samples


def sum_fisher(
    probe: Probe,
    layers: Sequence[Layer],
    head: Head,
    batches: Iterable[Batch],
    estimator: Estimator = "signed",
    seed: int = 0,
) -> FisherSum:
    """Return the sum of `per_sample_fisher` over all batches, accumulated in float64.

    Args:
        probe: in eval mode; untouched.
        layers: as ``probe.layers()`` returns them.
        head: fitted to the task, on the probe's device.
        batches: preprocessed pictures on the probe's device.
        estimator: see `cotangents`.
        seed: see `cotangents`.

    Returns:
        The sum and the number of pictures.

    Raises:
        RuntimeError: If the result is not finite.
    """
    total, samples = torch.zeros(layers[-1].stop, dtype=torch.float64), 0
    for batch in batches:
        probe = fold(probe, layers, batch.images[:1])
        total += per_sample_fisher(probe, layers, head, batch, estimator, seed).sum(0).cpu()
        samples += len(batch.index)
    if samples and not math.isfinite(float(total.sum())):
        broken = next(layer.name for layer in layers if not torch.isfinite(total[layer.start : layer.stop]).all())
        raise RuntimeError(f"fisher_embed: the Fisher of layer {broken!r} overflowed; use float32 weights.")
    return FisherSum(total, samples)
