"""One embedding by many workers, which share its images: the same bits, however many they are.

The images are cut into ranges that depend on nothing else. The first pass, and then the Fisher, is taken over each by
any worker; the heads are fitted once; the sums of all ranges are added in their order. Ranges hold a multiple of
`GROUPS` images, so that an image is in the same group of the jackknife as with one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .._util.progress import progress_bar
from ..fisher.per_sample import FisherSum
from ..jackknife import GROUPS
from ..probe.feed import ImageFeed, choose_device, on_device
from ..probe.precision import arithmetic, check_dtype
from .features import Features, FirstPass, check_read, read_features
from .fisher_embed import embed_task, embedding_of
from .steps import draw_images, fit_task_head, measured_by, sum_of_images

if TYPE_CHECKING:
    from torch import Tensor

    from .._util.pool import Pool
    from .._util.progress import Pass
    from ..data import Failure, Task
    from ..embedding import Embedding
    from ..fisher.cross_fit import CrossFitHead
    from ..fisher.head import Head
    from ..probe.probe import Probe
    from ..settings import EmbedSettings
    from .work import Work

RANGE = 128 * GROUPS
"""Images of a range: a minute of a CPU, a second of a GPU. Its sums take 2 MB at 8,512 filters."""

LARGE = 4 * RANGE
"""More images than this are worth sharing."""


def is_large(task: Task, settings: EmbedSettings) -> bool:
    """Return whether workers share the images of a task; it does not depend on how many workers there are."""
    images = min(len(task), settings.num_samples or len(task))
    return images > LARGE and settings.variational is None and settings.rel_error is None


class Embedder:
    """What a worker does: a whole task, or one step of a range of its images."""

    def __init__(self, probe: Probe, settings: EmbedSettings, work: Work, owned: bool) -> None:
        """Choose the device; `owned` as for `choose_device`."""
        self._work = work.on(choose_device(probe.module, work.device, owned=owned))
        self._whole, self._settings = probe, settings
        self._probe = settings.loss_object.tap(probe).computing_in(settings.dtype)
        self._layers = settings.check(self._probe)
        self._device = torch.device(self._work.device or "cpu")
        check_dtype(settings.dtype, probe.module, self._device)

    def embed(self, task: Task) -> tuple[str | None, Embedding]:
        """Return a record of the images, taken before, and the embedding."""
        return task.record(), embed_task(task, self._whole, self._settings, self._work)

    def features(self, task: Task, indices: Tensor) -> tuple[Features, tuple[Failure, ...]]:
        """Return what the first pass finds of some images."""
        with self._at_work(), self._feed(task) as feed:
            seen = read_features(feed, self._settings.loss_object, self._layers, indices, self._work)
        return seen.of_task, seen.skipped

    def head(self, of_task: Features) -> tuple[Head | CrossFitHead, Tensor]:
        """Return the head fitted to all features, on the CPU, and the targets as it takes them."""
        with self._at_work():
            seen = FirstPass(of_task, None, self._probe, ())
            head, targets = fit_task_head(seen, self._settings, self._device)
        return head.to(torch.device("cpu")), targets

    def fisher(self, task: Task, indices: Tensor, head: Head | CrossFitHead, targets: Tensor) -> FisherSum:
        """Return the sums over some images."""
        with self._at_work(), self._feed(task) as feed:
            seen = FirstPass(Features(targets, targets, indices), None, self._probe, ())
            fitted = head.to(self._device)
            steps = feed, seen, indices, self._layers, fitted, targets, self._settings
            return sum_of_images(*steps, cuda_graphs=self._work.cuda_graphs)

    def _feed(self, task: Task) -> ImageFeed:
        work = self._work
        return ImageFeed(task, self._probe, self._device, work.batch_size, work.num_workers, False, work.image_cache)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with (
            torch.inference_mode(False),
            arithmetic(self._settings.dtype, self._device),
            on_device(self._probe.module, self._device),
        ):
            yield


def embed_spread(
    task: Task, probe: Probe, settings: EmbedSettings, pool: Pool, progress: bool | Pass | None = False
) -> Embedding:
    """Return the embedding of a task whose images the workers of a pool share, each an `Embedder`.

    Args:
        task: As for `embed_task`.
        probe: As for `embed_task`.
        settings: With neither the robust Fisher nor ``rel_error``, which take the images in an order of their own.
        pool: The workers.
        progress: As for `Work`.

    Returns:
        The same bits for any number of workers, within 1e-6 of `embed_task`'s.
    """
    probe = settings.loss_object.tap(probe).computing_in(settings.dtype)
    layers, indices, sent = settings.check(probe), draw_images(task, settings), pool.put(task)
    ranges = indices.split(RANGE)
    with progress_bar(f"{task.name}: features", len(indices), progress) as advance:
        calls: list[tuple[Any, ...]] = [("features", sent, some) for some in ranges]
        parts = pool.all(calls, lambda number: advance(len(ranges[number])))
    skipped = sorted((one for _, of_range in parts for one in of_range), key=lambda failure: failure.index)
    seen = FirstPass(_in_order([of_range for of_range, _ in parts]), None, probe, tuple(skipped))
    check_read(task, indices, seen)
    ((head, targets),) = pool.all([("head", seen.of_task)])
    rows = list(zip(seen.of_task.indices.split(RANGE), targets.split(RANGE), strict=True))
    with progress_bar(f"{task.name}: Fisher", len(seen.of_task.indices), progress) as advance:
        sent_head = pool.put(head)
        calls = [("fisher", sent, some, sent_head, of_some) for some, of_some in rows]
        sums = pool.all(calls, lambda number: advance(len(rows[number][0])))
    measured = measured_by(FisherSum.joined(sums), probe, layers)
    return embedding_of(task, probe, seen, indices, layers, head, measured, settings)


def _in_order(parts: list[Features]) -> Features:
    """Return the features of all ranges; those without a readable image do not know their shape."""
    some = [part for part in parts if len(part.indices)] or parts[:1]
    return Features(*(torch.cat(column) for column in zip(*some, strict=True)))
