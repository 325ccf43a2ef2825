"""Where `fisher_embed` spends its time: features, head, Fisher, and waiting for images.

The only place that reaches into `fisher_embed`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import torch

from task2vec_ext.probe import feed

embed = import_module("task2vec_ext.embed.fisher_embed")  # by name: the folder exports a function of the same name


@dataclass
class Stages:
    """Seconds of one `fisher_embed`. Every stage ends with its results on the CPU, so the device has finished."""

    features: float = 0.0
    head: float = 0.0
    fisher: float = 0.0
    waiting: float = 0.0
    """Part of features and Fisher: the device idles until the next images arrive."""

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return self.features + self.head + self.fisher

    @property
    def waiting_share(self) -> float:
        """Share of the wall time in which the device waits for images."""
        return self.waiting / self.total


@contextmanager
def stages() -> Iterator[Stages]:
    """Yield the times of the one `fisher_embed` called inside the block."""
    clock = Stages()
    started = time.perf_counter()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            if name == "head":
                clock.features = begun - started  # everything before it
            try:
                return function(*args, **kwargs)
            finally:
                setattr(clock, name, time.perf_counter() - begun)

        return run

    def waited_for(*args: Any, **kwargs: Any) -> Iterator[Any]:
        loaded = real_batches(*args, **kwargs)
        try:
            while True:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()  # what is still running does not idle
                begun = time.perf_counter()
                batch = next(loaded, None)
                clock.waiting += time.perf_counter() - begun
                if batch is None:
                    return
                yield batch
        finally:
            loaded.close()  # a generator

    real_batches = feed.batches
    with (
        mock.patch.object(feed, "batches", waited_for),
        mock.patch.object(embed, "fit_head", timed("head", embed.fit_head)),
        mock.patch.object(embed, "sum_fisher", timed("fisher", embed.sum_fisher)),
    ):
        yield clock
