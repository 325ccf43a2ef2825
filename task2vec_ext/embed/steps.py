"""The steps of an embedding besides reading features: draw images, fit the head, compute the Fisher."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from .._util.warnings import Task2VecWarning
from ..data import Batch, ClassLabel, check_labels, draw, read_labels
from ..fisher.cross_fit import CrossFitHead, fit_cross_fit_head
from ..fisher.head import Head, fit_head
from ..fisher.per_sample import FisherSum, sum_fisher
from ..fisher.variational import DEFAULT_KAPPA, variational_epochs
from ..jackknife import FEWEST_GROUPS
from ..words import Estimator
from .features import FirstPass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from ..data import Task
    from ..probe.feed import ImageFeed
    from ..probe.layers import Layer
    from ..probe.probe import Probe
    from ..settings import EmbedSettings

PRIOR_SCALE = 2 * DEFAULT_KAPPA
"""c of the prior c·λ_l²: at the optimum of the robust objective a filter's precision is F/c + λ_l² (variational.py)."""


def draw_images(task: Task, settings: EmbedSettings) -> Tensor:
    """Return which images to take, ``[N]`` int64 in random order: all, or ``settings.num_samples`` of them.

    Args:
        task: Whose images.
        settings: Number, seed and whether classes are drawn equally often.

    Returns:
        Indices of the task.

    Raises:
        ValueError: If the task has no images, or labels that are known now are not 0…C−1 of two classes or more.
    """
    if len(task) == 0:
        raise ValueError(f"fisher_embed: expected a task with images, {task.name!r} has none.")
    has_classes = isinstance(task.target, ClassLabel)
    read = has_classes and (settings.num_samples is not None or task.has_unread_names())
    known = read_labels(task) if read else task.labels
    if known is not None:
        check_labels(known, who="fisher_embed")
    classes = torch.zeros(len(task), dtype=torch.int64) if known is None else known
    indices = draw(classes, settings.num_samples, settings.seed, balanced=settings.head.class_balanced)
    order = torch.Generator().manual_seed(~settings.seed)  # another stream than the draw's
    return indices[torch.randperm(len(indices), generator=order)]


def fit_task_head(seen: FirstPass, settings: EmbedSettings, device: torch.device) -> tuple[Head | CrossFitHead, Tensor]:
    """Return the head fitted to a task's features, on the device, and the targets as it takes them, ``[N, …]``.

    With ``settings.head.cross_fit`` it is a head for each fold.

    Args:
        seen: What `read_features` returned.
        settings: Loss, estimator, head and seed.
        device: Where to fit.

    Returns:
        Head and targets.

    Raises:
        ValueError: If the targets do not vary, or ``"exact"`` would take too many backward passes.
    """
    loss = settings.loss_object
    features, targets, indices = seen.of_task
    targets, num_outputs = loss.prepare(targets, features, settings.seed)
    passes = features[0, ..., 0].numel() * num_outputs
    if settings.estimator == "exact" and passes > loss.max_passes:
        raise ValueError(
            f"fisher_embed: expected at most {loss.max_passes} backward passes an image of 'exact' with loss "
            f"{loss.name!r}, got {passes:,}; use 'signed', or a smaller image_size."
        )

    head: Head | CrossFitHead
    rows, wanted, options = features.to(device), targets.to(device), settings.head
    if options.cross_fit is None:
        how: dict[str, Any] = {name: getattr(options, name) for name in ("method", "l2", "class_balanced")}
        head = fit_head(rows, wanted, num_outputs, loss=loss, seed=settings.seed, **how)
    else:
        head = fit_cross_fit_head(rows, wanted, num_outputs, indices, loss, options, settings.seed)
    if isinstance(head, CrossFitHead) and head.num_in_all:
        warnings.warn(
            f"fisher_embed: expected two images or more of each class for cross_fit, got {head.num_in_all} of "
            f"{len(indices)} images that are the only ones with a class or label; every head is fitted to these, and "
            "their part of the Fisher is in-sample; leave such classes out, or add images",
            Task2VecWarning,
            stacklevel=6,
        )
    return head, targets


class Measured(NamedTuple):
    """What an estimator gives an embedding; see `Embedding` for shapes and units."""

    fisher: Tensor
    prior: Tensor
    samples: int
    prior_scale: float
    relative_error: float = math.nan
    group_means: Tensor | None = None
    epoch_nll: tuple[float, ...] = ()


def measure_fisher(
    feed: ImageFeed,
    seen: FirstPass,
    layers: Sequence[Layer],
    head: Head | CrossFitHead,
    targets: Tensor,
    settings: EmbedSettings,
    *,
    cuda_graphs: bool = False,
) -> Measured:
    """Return the per-sample Fisher of a task: one pass over its images.

    Args:
        feed: The task's images.
        seen: What `read_features` returned.
        layers: To describe.
        head: What `fit_task_head` returned, with the next one.
        targets: ``[N, …]``.
        settings: Estimator, seed and ``rel_error``.
        cuda_graphs: See `Work`.

    Returns:
        Fisher, prior, and the groups that error bars are computed from.
    """
    feed.warn_if_restless(seen.first)
    result = sum_of_images(feed, seen, seen.of_task.indices, layers, head, targets, settings, cuda_graphs=cuda_graphs)
    return measured_by(result, feed.probe, layers)


def sum_of_images(
    feed: ImageFeed,
    seen: FirstPass,
    indices: Tensor,
    layers: Sequence[Layer],
    head: Head | CrossFitHead,
    targets: Tensor,
    settings: EmbedSettings,
    *,
    cuda_graphs: bool = False,
) -> FisherSum:
    """Return the sums of the per-sample Fisher over some images, with their targets; see `measure_fisher`."""
    with feed.batches(indices, "Fisher", targets=targets) as loaded:
        estimator = cast("Estimator", settings.estimator)
        graphs = cuda_graphs and feed.device.type == "cuda"
        options = settings.seed, settings.rel_error
        return sum_fisher(seen.probe, layers, head, loaded, estimator, *options, cuda_graphs=graphs)


def measured_by(result: FisherSum, probe: Probe, layers: Sequence[Layer]) -> Measured:
    """Return what the sums over all images give an embedding."""
    groups = result.groups
    enough = len(groups.sizes) >= FEWEST_GROUPS
    return Measured(
        result.mean,
        probe.prior(layers, PRIOR_SCALE),
        result.samples,
        PRIOR_SCALE,
        groups.relative_error() if enough else math.inf,
        groups.means.float() if enough else None,
    )


def measure_robust_fisher(
    feed: ImageFeed,
    seen: FirstPass,
    layers: Sequence[Layer],
    head: Head | CrossFitHead,
    targets: Tensor,
    settings: EmbedSettings,
) -> Measured:
    """Return the robust Fisher of a task: several passes over images drawn from it. Arguments as `measure_fisher`'s."""
    options, indices = settings.variational, seen.of_task.indices
    assert options is not None
    assert isinstance(head, Head)  # EmbedSettings sees to it

    def epochs() -> Iterator[Iterator[Batch]]:
        for number, chosen in enumerate(options.epochs_of(targets, settings.seed), 1):
            what = f"epoch {number} of {options.epochs}"
            with feed.batches(indices[chosen], what, targets=targets[chosen]) as loaded:
                yield loaded

    *_, robust = variational_epochs(seen.probe, layers, head, epochs(), len(indices), options, settings.seed)
    return Measured(robust.fisher, robust.prior, len(indices), 2 * robust.kappa, epoch_nll=robust.nll)
