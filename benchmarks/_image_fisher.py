"""Every image's own Fisher under a fixed head, computed once: the embedding of any sample is then a mean of rows."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from task2vec_ext import Probe, Task
from task2vec_ext.data import Batch, batches
from task2vec_ext.fisher import Head, fit_head, per_sample_fisher
from task2vec_ext.probe.folding import fold
from task2vec_ext.words import Estimator

_BATCH = 50


class ImageFisher(NamedTuple):
    """The Fisher of a task's images under one head."""

    fisher: Tensor
    """``[N, K]`` float32: `task2vec_ext.fisher.per_sample_fisher` of every image."""
    labels: Tensor
    """``[N]`` int64."""
    head: Head


def image_fisher(
    task: Task, probe: Probe, *, estimator: Estimator, l2: float | None, seed: int = 0, cache: Path
) -> ImageFisher:
    """Return the Fisher of all images of a task, the head fitted to all of them; `cache` is a folder that keeps it."""
    what = f"{task.digest()} {probe.fingerprint} {probe.preprocess} {estimator} {l2} {seed}"
    file = cache / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.pt"
    if file.exists():
        return ImageFisher(*torch.load(file, weights_only=False))
    images = read(task, probe)
    head = fitted(probe, images, l2)
    rows = _rows(probe, images, head, estimator, seed, f"{task.name}, {estimator}")
    found = ImageFisher(rows.float(), images.labels, head)
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(tuple(found), file)
    return found


def read(task: Task, probe: Probe, indices: Tensor | None = None) -> Batch:
    """Return the task's images, all or those at `indices`, as one batch."""
    chosen = torch.arange(len(task)) if indices is None else indices
    with closing(batches(task, chosen, probe.preprocess, batch_size=_BATCH)) as loaded:  # type: ignore[type-var]  # a generator
        return Batch(*(torch.cat(parts) for parts in zip(*loaded, strict=True)))


def split(images: Batch, size: int = _BATCH) -> list[Batch]:
    """Return the images in batches of `size`."""
    return [Batch(*parts) for parts in zip(*(part.split(size) for part in images), strict=True)]


def fitted(probe: Probe, images: Batch, l2: float | None) -> Head:
    """Return the head that `fisher_embed` would fit to these images."""
    with torch.no_grad():
        features = torch.cat([probe.features(batch.images) for batch in split(images)])
    return fit_head(features, images.labels, int(images.labels.max()) + 1, l2=l2)


def refitted(probe: Probe, all_images: Batch, samples: int, l2: float | None, random: torch.Generator) -> Tensor:
    """Return the rows ``[N, K]`` of N images under the head that is fitted to them alone.

    Drawn without replacement: with an image twice, the head would be more confident than N images can make it.
    """
    drawn = torch.randperm(len(all_images.labels), generator=random)[:samples]
    images, labels = all_images.images[drawn], all_images.labels[drawn].unique(return_inverse=True)[1]
    some = Batch(drawn, images, labels)
    return _rows(probe, some, fitted(probe, some, l2), "signed")


def _rows(
    probe: Probe, images: Batch, head: Head, estimator: Estimator, seed: int = 0, progress: str | None = None
) -> Tensor:
    layers = probe.layers()
    faster = fold(probe, layers, images.images[:1])
    batches = split(images)
    shown = batches if progress is None else track(batches, progress)
    return torch.cat([per_sample_fisher(faster, layers, head, batch, estimator, seed) for batch in shown])
