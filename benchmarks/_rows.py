"""Every image's own Fisher under a fixed head, once: then any draw of images is a sum of rows."""

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
from task2vec_ext.fisher.head import Head, fit_head
from task2vec_ext.fisher.per_sample import Estimator, per_sample_fisher
from task2vec_ext.probe.folding import fold

_BATCH = 50


class Rows(NamedTuple):
    """A task under one head."""

    fisher: Tensor
    """``[N, K]`` float32: `task2vec_ext.fisher.per_sample_fisher` of every image."""
    labels: Tensor
    """``[N]`` int64."""
    head: Head


def rows(task: Task, probe: Probe, *, estimator: Estimator, l2: float, seed: int = 0, cache: Path) -> Rows:
    """Return the rows of all the task's images, the head fitted to all of them, and keep them in `cache`."""
    what = f"{task.digest()} {probe.fingerprint} {probe.preprocess} {estimator} {l2} {seed}"
    file = cache / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.pt"
    if file.exists():
        return Rows(*torch.load(file, weights_only=False))
    images = read(task, probe)
    faster, layers = fold(probe, probe.layers(), images.images[:1]), probe.layers()
    head = fitted(probe, images, l2)
    parts = [
        per_sample_fisher(faster, layers, head, batch, estimator, seed).float()
        for batch in track(split(images, _BATCH), f"{task.name}, {estimator}")
    ]
    found = Rows(torch.cat(parts), images.labels, head)
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(tuple(found), file)
    return found


def read(task: Task, probe: Probe) -> Batch:
    """Return all of the task's images as one batch."""
    with closing(batches(task, range(len(task)), probe.preprocess, batch_size=_BATCH)) as loaded:  # type: ignore[type-var]  # a generator
        return Batch(*(torch.cat(parts) for parts in zip(*loaded, strict=True)))


def split(images: Batch, size: int) -> list[Batch]:
    """Return the images in batches of `size`."""
    return [Batch(*parts) for parts in zip(*(part.split(size) for part in images), strict=True)]


def fitted(probe: Probe, images: Batch, l2: float) -> Head:
    """Return the head that `fisher_embed` would fit to these images."""
    with torch.no_grad():
        features = torch.cat([probe.features(batch.images) for batch in split(images, _BATCH)])
    return fit_head(features, images.labels, int(images.labels.max()) + 1, l2=l2)


def refitted(probe: Probe, all_images: Batch, samples: int, l2: float, random: torch.Generator) -> Tensor:
    """Return the rows ``[N, K]`` of N images under the head that is fitted to them alone.

    Drawn without replacement: an image that is there twice would make the head surer than N images can.
    """
    drawn = torch.randperm(len(all_images.labels), generator=random)[:samples]
    images, labels = all_images.images[drawn], all_images.labels[drawn].unique(return_inverse=True)[1]
    some = Batch(drawn, images, labels)
    layers, head = probe.layers(), fitted(probe, some, l2)
    faster = fold(probe, layers, images[:1])
    return torch.cat([per_sample_fisher(faster, layers, head, batch, "signed") for batch in split(some, _BATCH)])
