"""Every picture's own Fisher under a fixed head, once: then any draw of pictures is a sum of rows."""

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
from task2vec_ext.fisher import Estimator, per_sample_fisher
from task2vec_ext.folding import fold
from task2vec_ext.head import Head, fit_head

_BATCH = 50


class Rows(NamedTuple):
    """A task under one head."""

    fisher: Tensor
    """``[N, K]`` float32: `task2vec_ext.fisher.per_sample_fisher` of every picture."""
    labels: Tensor
    """``[N]`` int64."""
    head: Head


def rows(task: Task, probe: Probe, *, estimator: Estimator, l2: float, seed: int = 0, cache: Path) -> Rows:
    """Return the rows of all the task's pictures, the head fitted to all of them, and keep them in `cache`."""
    what = f"{task.digest()} {probe.fingerprint} {probe.preprocess} {estimator} {l2} {seed}"
    file = cache / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.pt"
    if file.exists():
        return Rows(*torch.load(file, weights_only=False))
    pictures = read(task, probe)
    faster, layers = fold(probe, probe.layers(), pictures.images[:1]), probe.layers()
    head = fitted(probe, pictures, l2)
    parts = [
        per_sample_fisher(faster, layers, head, batch, estimator, seed).float()
        for batch in track(split(pictures, _BATCH), f"{task.name}, {estimator}")
    ]
    found = Rows(torch.cat(parts), pictures.labels, head)
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(tuple(found), file)
    return found


def read(task: Task, probe: Probe) -> Batch:
    """Return all of the task's pictures as one batch."""
    with closing(batches(task, range(len(task)), probe.preprocess, batch_size=_BATCH)) as loaded:  # type: ignore[type-var]  # a generator
        return Batch(*(torch.cat(parts) for parts in zip(*loaded, strict=True)))


def split(pictures: Batch, size: int) -> list[Batch]:
    """Return the pictures in batches of `size`."""
    return [Batch(*parts) for parts in zip(*(part.split(size) for part in pictures), strict=True)]


def fitted(probe: Probe, pictures: Batch, l2: float) -> Head:
    """Return the head that `fisher_embed` would fit to these pictures."""
    with torch.no_grad():
        features = torch.cat([probe.features(batch.images) for batch in split(pictures, _BATCH)])
    return fit_head(features, pictures.labels, int(pictures.labels.max()) + 1, l2=l2)


def refitted(probe: Probe, pictures: Batch, samples: int, l2: float, random: torch.Generator) -> Tensor:
    """Return the rows ``[N, K]`` of N pictures under the head that is fitted to them alone.

    Drawn without replacement: a picture that is there twice would make the head surer than N pictures can.
    """
    drawn = torch.randperm(len(pictures.labels), generator=random)[:samples]
    images, labels = pictures.images[drawn], pictures.labels[drawn].unique(return_inverse=True)[1]
    some = Batch(drawn, images, labels)
    layers, head = probe.layers(), fitted(probe, some, l2)
    faster = fold(probe, layers, images[:1])
    return torch.cat([per_sample_fisher(faster, layers, head, batch, "signed") for batch in split(some, _BATCH)])
