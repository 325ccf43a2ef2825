"""The first pass over a task: the features of its images, from the probe or from the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .._util.later import later
from ..data import Batch, ClassLabel
from ..fisher.per_sample import check_per_sample
from ..probe.folding import fold
from ..probe.repeatable import check_repeatable
from .feature_cache import FeatureCache, keys

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from torch import Tensor

    from ..data import Failure, Task
    from ..losses import Loss
    from ..probe.feed import ImageFeed
    from ..probe.layers import Layer
    from ..probe.probe import Probe
    from ..words import OnError
    from .work import Work


_ROUNDING = 1e-5
"""Of float32 features of one image in two batches: about 1e-6 of the largest."""


_ROWS = 4096
"""Images that are compared at a time."""


class Features(NamedTuple):
    """What the head is fitted to, all on the CPU."""

    features: Tensor  # [N, …, D]
    targets: Tensor  # [N, …], as read
    indices: Tensor  # [N], of the images that could be read


class FirstPass(NamedTuple):
    """What `read_features` returns."""

    of_task: Features
    first: Batch | None  # the first image that was read
    probe: Probe  # folded
    skipped: tuple[Failure, ...]  # images that could not be read


def read_features(feed: ImageFeed, loss: Loss, layers: Sequence[Layer], indices: Tensor, work: Work) -> FirstPass:
    """Return the features of a task's images, in the order of the indices.

    Args:
        feed: The task's images.
        loss: Aligns targets with features.
        layers: To describe; the network is folded and checked for them on the first batch, which is always read.
        indices: ``[N]``, which images.
        work: Cache, and what happens with images that cannot be read.

    Returns:
        Features and targets of the images that could be read, and the folded probe.
    """
    cache = work.feature_cache
    named = _keys(feed, indices) if cache is not None else {}  # before they are read
    fresh, known = _known(feed, indices, cache, named)
    skipped: list[Failure] = []
    seen, first, probe = _read(feed, loss, layers, fresh, work.on_error, skipped)
    if cache is not None and named:
        cache.put([named[i] for i in seen.indices.tolist()], seen.features)
    skipped.sort(key=lambda failure: failure.index)
    return FirstPass(_joined([seen, known], indices), first, probe, tuple(skipped))


def check_read(task: Task, indices: Tensor, seen: FirstPass) -> None:
    """Raise unless what was read can be a task: images of every class, and features that vary.

    Args:
        task: The task.
        indices: ``[N]``, the images that were to be read.
        seen: What `read_features` returned.

    Raises:
        ValueError: If no image of the task or of a class could be read, or all have the same features.
    """
    of_task, skipped = seen.of_task, seen.skipped
    if not len(of_task.indices):
        raise ValueError(
            f"fisher_embed: expected images of {task.name!r} that can be read, got none of {len(indices)}; the first: "
            f"{skipped[0].where}: {skipped[0].reason}"
        )
    if skipped and isinstance(task.target, ClassLabel):
        _check_classes(task, indices, of_task.targets, skipped)
    features = of_task.features.flatten(0, -2)
    spread = float((features.amax(0) - features.amin(0)).max())
    if spread <= _ROUNDING * float(features.abs().max()):
        raise ValueError(
            f"fisher_embed: expected images that the probe tells apart, got the same features for all "
            f"{len(of_task.indices)} images of {task.name!r}; look at the images (are they all alike, or empty?), and "
            "at the probe's weights."
        )


def twins(features: Tensor, labels: Tensor) -> int:
    """Return how many images have the features of an image of another class.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``.
    """
    # Equal rows have equal projections, and so are neighbours in their order.
    order = (features.double() @ torch.linspace(1, 2, features.shape[1], dtype=torch.float64)).argsort()
    same = torch.zeros(len(order), dtype=torch.bool)
    for before, after in zip(order.split(_ROWS), order[1:].split(_ROWS), strict=False):
        before = before[: len(after)]
        near = (features[before] - features[after]).abs().amax(1) <= _ROUNDING * float(features.abs().max())
        near &= labels[before] != labels[after]
        same[before[near]] = same[after[near]] = True
    return int(same.sum())


def _check_classes(task: Task, indices: Tensor, targets: Tensor, skipped: Sequence[Failure]) -> None:
    """Raise if all images of a class are among those that were left out."""
    read = set(targets.tolist())
    wanted = range(min(max(read) + 1, len(indices))) if task.labels is None else task.labels[indices].tolist()
    if lost := sorted(set(wanted) - read):
        names = [str(label) if task.classes is None else repr(task.classes[label]) for label in lost[:5]]
        of_lost = (one for one in skipped if task.labels is None or int(task.labels[one.index]) == lost[0])
        example = next(of_lost, skipped[0])
        raise ValueError(
            f"fisher_embed: expected a readable image of every class of {task.name!r}, got none of class "
            f"{', '.join(names)}{', …' * (len(lost) > 5)} ({len(skipped)} images cannot be read, such as "
            f"{example.where}: {example.reason.rstrip('.')}); replace the images, or leave the class out (remap)."
        )


def _keys(feed: ImageFeed, indices: Tensor) -> dict[int, Hashable]:
    """Index -> key, where an image's target is known without reading it, and its features are one vector."""
    if not isinstance(feed.task.target, ClassLabel) or feed.task.labels is None:
        return {}
    return dict(zip(indices.tolist(), keys(feed.task, feed.probe, indices), strict=True))


def _known(
    feed: ImageFeed, indices: Tensor, cache: FeatureCache | None, named: Mapping[int, Hashable]
) -> tuple[Tensor, Features]:
    """Return which images must be read, and all of the others."""
    labels = feed.task.labels
    if cache is None or labels is None or not named:
        return indices, Features(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), indices[:0])
    known, features = cache.get([named[i] for i in indices.tolist()])
    read = feed.batch_size
    features = features[int(known[:read].sum()) :]
    known[:read] = False
    return indices[~known], Features(features, labels[indices[known]], indices[known])


def _read(
    feed: ImageFeed, loss: Loss, layers: Sequence[Layer], indices: Tensor, on_error: OnError, skipped: list[Failure]
) -> tuple[Features, Batch | None, Probe]:
    """Return the features of images that are read now, the first of them alone, and the probe, folded."""
    probe, kept, first = feed.probe, torch.empty_like(indices), None
    features, targets = torch.empty(0, probe.feature_size), torch.empty(0, dtype=torch.int64)
    stop = 0
    waiting: list[tuple[slice, Callable[[], Tensor], Callable[[], Tensor]]] = []

    def fetch(rows: slice, of_images: Callable[[], Tensor], of_labels: Callable[[], Tensor]) -> None:
        features[rows], targets[rows] = of_images(), of_labels()

    with torch.no_grad(), feed.batches(indices, "features", on_error, skipped) as loaded:
        for batch in loaded:
            if stop == 0:
                first = Batch(*(part[:1].clone() for part in batch))
                check_repeatable(probe, batch.images[:1])
                check_per_sample(probe, layers, batch.images)  # on the user's network, whose modules errors name
                probe = fold(probe, layers, batch.images[:1])
            z = probe.features(batch.images)
            y = loss.align(batch.labels, z)
            if stop == 0:
                features = torch.empty(len(indices), *z.shape[1:])
                targets = torch.empty(len(indices), *y.shape[1:], dtype=y.dtype)
            rows = slice(stop, stop := stop + len(batch.index))
            kept[rows] = batch.index
            waiting.append((rows, later(z.float()), later(y)))
            if len(waiting) > 1:  # a batch behind: while this waits for the features before, a GPU computes the next
                fetch(*waiting.pop(0))
    for one in waiting:
        fetch(*one)
    return Features(features[:stop], targets[:stop], kept[:stop]), first, probe


def _joined(parts: Sequence[Features], order: Tensor) -> Features:
    """Return all parts as one, in the order of all indices ``[N]``."""
    some = [part for part in parts if len(part.indices)]
    if len(some) < 2:
        return some[0] if some else parts[0]
    place = torch.empty(int(order.max()) + 1, dtype=torch.int64)
    place[order] = torch.arange(len(order))
    rows = place[torch.cat([part.indices for part in some])].argsort()
    return Features(*(torch.cat(column)[rows] for column in zip(*some, strict=True)))
