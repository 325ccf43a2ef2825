"""Where an embedding spends its time: features, head, Fisher, and waiting for images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from task2vec_ext import Probe, Task
from task2vec_ext.data import Batch, ImageCache
from task2vec_ext.embed import Work, draw_images, fit_task_head, measure_fisher, read_features
from task2vec_ext.probe.feed import ImageFeed, choose_device, on_device
from task2vec_ext.settings import EmbedSettings


@dataclass(frozen=True)
class Stages:
    """Seconds of one embedding. Every stage ends with its results on the CPU, so the device has finished."""

    features: float
    head: float
    fisher: float
    waiting: float
    """Part of features and Fisher: the device idles until the next images arrive."""

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the device waits for images."""
        return self.waiting / (self.features + self.head + self.fisher)


def timed_stages(task: Task, probe: Probe, settings: EmbedSettings, work: Work) -> Stages:
    """Take the steps of `task2vec_ext.embed.embed_task`, and return the seconds of each."""
    device = choose_device(probe.module, work.device, owned=False)
    cache = ImageCache() if work.image_cache is None else work.image_cache
    feed = _TimedFeed(task, probe, device, work.batch_size, work.num_workers, False, cache)
    ends = [time.perf_counter()]
    layers, indices = settings.check(probe), draw_images(task, settings)
    with on_device(probe.module, device), feed:
        seen = read_features(feed, settings.loss_object, layers, indices, work)
        ends.append(time.perf_counter())
        head, targets = fit_task_head(seen, settings, device)
        ends.append(time.perf_counter())
        measure_fisher(feed, seen, layers, head, targets, settings)
        ends.append(time.perf_counter())
    features, head_fit, fisher = (end - start for start, end in itertools.pairwise(ends))
    return Stages(features, head_fit, fisher, sum(feed.waits))


class _TimedFeed(ImageFeed):
    """A feed that keeps the seconds for which its reader waited."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.waits: list[float] = []

    @contextmanager
    def batches(self, *args: Any, **kwargs: Any) -> Iterator[Iterator[Batch]]:
        with super().batches(*args, **kwargs) as loaded:
            yield self._timed(loaded)

    def _timed(self, loaded: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # while it still computes, it does not idle
            started = time.perf_counter()
            batch = next(loaded, None)
            self.waits.append(time.perf_counter() - started)
            if batch is None:
                return
            yield batch
