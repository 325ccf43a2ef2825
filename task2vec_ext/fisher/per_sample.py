"""The per-sample Fisher: one cotangent an image, one backward pass, the squared gradient of each filter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch

from .._util.later import later
from ..jackknife import GROUPS, Groups, group_sizes, num_groups
from ..losses import CrossEntropy, Loss, signs_per_image
from ..probe.folding import FoldedProbe, fold
from ..probe.probe import frozen
from ..words import AnyEstimator, Estimator
from .capture import capture
from .network_pass import Replays, backward, network_pass

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from torch import Tensor

    from ..data import Batch
    from ..probe.layers import Layer
    from ..probe.probe import Probe
    from .cross_fit import CrossFitHead
    from .head import Head
    from .network_pass import NetworkPass

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
ANY_ESTIMATORS: tuple[AnyEstimator, ...] = get_args(AnyEstimator)

_FIRST_LOOK = 2 * GROUPS
"""Images before `sum_fisher` may stop: with one image a group the spread is too uncertain."""


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
    - ``empirical``: as ``sampled``, with y the data's target. One pass; **not** the Fisher.

    Args:
        estimator: One of these.
        logits: ``[B, …, C]``.
        targets: ``[B, …]``, as ``loss.prepare`` returns them; only ``empirical`` uses their values.
        index: ``[B]``, the images' numbers, on the CPU. ε and y are functions of (seed, index): batches and order do
            not matter.
        seed: Of ε and y.
        loss: The fitted loss.

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
        signs = signs_per_image(index, seed, shape, logits.device)
        yield loss.root(logits, targets, signs).to(logits.dtype)
        return
    if estimator == "sampled":
        targets = loss.sample(logits, targets, index, seed)
    elif estimator != "empirical":
        raise ValueError(f"fisher_embed: expected estimator to be one of {', '.join(ESTIMATORS)}; got {estimator!r}.")
    yield loss.residual(logits, targets).to(logits.dtype)


def check_per_sample(probe: Probe, layers: Sequence[Layer], images: Tensor) -> None:
    """Raise NotImplementedError unless every layer has a gradient for each image, before the work begins.

    The first of `images` ``[B, 3, H, W]`` goes through the network twice in one batch. With a gradient at the features
    of the first copy only, the second copy must have none in any layer. `capture` raises for what it cannot follow.
    """
    with torch.enable_grad(), frozen(probe.module), capture(probe.module, layers, 2) as captured:
        features = probe.features(images[:1].repeat(2, 1, 1, 1))
        # Any direction will do but the special ones: LayerNorm has no gradient along the vector of ones.
        direction = torch.randn(features.shape[1:], generator=torch.Generator().manual_seed(0)).to(features)
        backward(features, torch.stack([direction, torch.zeros_like(direction)]))
        other = captured.take()[1]
    mixed = [layer.name for layer in layers if (other[layer.start : layer.stop] > 0).any()]
    if mixed:
        raise NotImplementedError(
            "fisher_embed: expected images that stay apart along the first axis of every layer's input, but in "
            f"{', '.join(mixed[:3])}{' …' if len(mixed) > 3 else ''} one image's features depend on another's rows "
            "(sequences whose first axis is time, statistics over the batch?); pass layers=[…] with the others."
        )


def per_sample_fisher(
    probe: Probe,
    layers: Sequence[Layer],
    head: Head | CrossFitHead,
    batch: Batch,
    estimator: Estimator = "signed",
    seed: int = 0,
    network: NetworkPass = network_pass,
) -> Tensor:
    """Return the contribution of every image to the Fisher, ``Σ_v ‖∂(v·logits_n)/∂w_o‖² / P``.

    Args:
        probe: In eval mode; untouched. `folding.fold` gives a faster one.
        layers: As ``probe.layers()`` returns them.
        head: Fitted to the task, on the probe's device; a cross-fitted one knows the head of each image.
        batch: Preprocessed images on the probe's device, labels as the head's loss prepared them, the images' numbers
            (`index`) on the CPU.
        estimator: See `cotangents`.
        seed: See `cotangents`.
        network: How the network runs.

    Returns:
        ``[B, K]`` float64, nats² per weight², on the probe's device. Its mean over a task is the embedding.

    Raises:
        ValueError: If the probe is in train mode or its output is not finite.
        NotImplementedError: If the per-sample gradient of a layer is unknown; see `check_per_sample`.
    """
    device = batch.images.device
    total: Tensor | None = None
    with network(probe, layers, batch.images) as (features, rows), torch.autocast(device.type, enabled=False):
        own = head.of(batch.index)
        logits = own.logits(features)
        finite = later(torch.isfinite(logits).all())
        passes = logits[0].numel() if estimator == "exact" else 1
        for number, v in enumerate(cotangents(estimator, logits, batch.labels, batch.index, seed, head.loss)):
            # The head is linear: its own backward is one product, outside autograd.
            row = rows(own.pull(v), number < passes - 1)
            total = row if total is None else total.add_(row)
    assert total is not None
    if not finite():  # asked once the backward pass is queued: a GPU never waits for the answer
        raise ValueError(
            f"fisher_embed: expected finite outputs of {probe.name}, got NaN or infinity for images "
            f"{batch.index.tolist()[:5]}…; check its weights and the preprocessing."
        )
    return total * _units(probe, tuple(layers), device)


_UNITS: WeakKeyDictionary[Probe, dict[Hashable, Tensor]] = WeakKeyDictionary()


def _units(probe: Probe, layers: tuple[Layer, ...], device: torch.device) -> Tensor:
    """Return 1/P of every filter, times s² where BatchNorm was folded in, ``[K]`` float64; made once for a probe."""
    made = _UNITS.setdefault(probe, {})
    if (layers, device) not in made:
        scale = probe.scale if isinstance(probe, FoldedProbe) else {}
        ones = torch.ones(layers[-1].stop, dtype=torch.float64, device=device)
        factors = [
            scale[layer.name].double().square() if layer.name in scale else ones[layer.start : layer.stop]
            for layer in layers
        ]
        made[layers, device] = torch.cat([factor / layer.fan_in for factor, layer in zip(factors, layers, strict=True)])
    return made[layers, device]


class FisherSum(NamedTuple):
    """The sum of `per_sample_fisher` over each group of images; image i belongs to group i mod G."""

    totals: Tensor
    """``[GROUPS, K]`` float64 on the CPU."""
    samples: int
    """N, the number of images."""

    @classmethod
    def joined(cls, parts: Sequence[FisherSum]) -> FisherSum:
        """Return the sums over all parts; every part but one holds a multiple of `GROUPS` images."""
        return cls(torch.stack([part.totals for part in parts]).sum(0), sum(part.samples for part in parts))

    @property
    def mean(self) -> Tensor:
        """F, ``[K]``."""
        return self.totals.sum(0) / self.samples

    @property
    def groups(self) -> Groups:
        """F, and F of each group's images; G = `jackknife.num_groups`."""
        G = num_groups(self.samples)  # divides GROUPS: image i is in group i mod G still
        sizes = group_sizes(self.samples, G)
        return Groups(self.mean, self.totals.view(-1, G, self.totals.shape[1]).sum(0) / sizes[:, None], sizes)


def sum_fisher(
    probe: Probe,
    layers: Sequence[Layer],
    head: Head | CrossFitHead,
    batches: Iterable[Batch],
    estimator: Estimator = "signed",
    seed: int = 0,
    rel_error: float | None = None,
    *,
    cuda_graphs: bool = False,
) -> FisherSum:
    """Return the sums of `per_sample_fisher` over all batches, accumulated in float64.

    Args:
        probe: In eval mode; untouched.
        layers: As ``probe.layers()`` returns them.
        head: Fitted to the task, on the probe's device; a cross-fitted one knows the head of each image.
        batches: Preprocessed images on the probe's device, in random order; image i goes to group i mod G.
        estimator: See `cotangents`.
        seed: See `cotangents`.
        rel_error: Stop when the relative standard error of the mean is at most this; None: take all images.
        cuda_graphs: Replay the network's pass from CUDA graphs; on a GPU.

    Returns:
        The sums, and the number of images.

    Raises:
        RuntimeError: If the result is not finite.

    Note:
        The sums stay on the probe's device until the end. With `rel_error` they are fetched for each check. Where it
        stops does not depend on the batches: it checks whenever all groups have equally many images.
    """
    network = Replays(repeat=estimator == "exact") if cuda_graphs else network_pass
    totals, samples, done = torch.zeros(GROUPS, layers[-1].stop, dtype=torch.float64), 0, False

    def enough() -> bool:
        if rel_error is None or samples % GROUPS or samples < _FIRST_LOOK:
            return False
        return FisherSum(totals.cpu(), samples).groups.relative_error() <= rel_error

    for batch in batches:
        if samples == 0:
            probe, totals = fold(probe, layers, batch.images[:1]), totals.to(batch.images.device)
        rows = per_sample_fisher(probe, layers, head, batch, estimator, seed, network)
        while len(rows) and not done:
            first = samples % GROUPS
            part, rows = rows[: GROUPS - first], rows[GROUPS - first :]
            totals[first : first + len(part)] += part
            samples += len(part)
            done = enough()
        if done:
            break
    totals = totals.cpu()
    total = totals.sum(0)
    if samples and not math.isfinite(float(total.sum())):
        broken = next(layer.name for layer in layers if not torch.isfinite(total[layer.start : layer.stop]).all())
        raise RuntimeError(f"fisher_embed: the Fisher of layer {broken!r} overflowed; use float32 weights.")
    return FisherSum(totals, samples)
