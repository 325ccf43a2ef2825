"""Before a library is made: do the options fit any of its tasks?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data import Failure, Task
from ..embed import Work, draw_images
from ..probe.feed import ImageFeed, choose_device, on_device
from ..probe.probe import Probe
from ..settings import EmbedSettings

_IMAGES = 4


def rehearse(tasks: Sequence[Task], probe: Probe, settings: EmbedSettings, work: Work) -> None:
    """Raise ValueError if the options fit none of the tasks, which would all fail, one by one.

    A few images of the first task pass through the probe; only if that fails, those of the next. An image that cannot
    be read says nothing of the options.
    """
    errors: list[tuple[str, Exception]] = []
    for task in tasks:
        try:
            _try(task, probe, settings, work)
            return
        except Exception as error:
            errors.append((task.name, error))
    if errors:
        name, first = errors[0]
        raise ValueError(
            f"build_library: expected options that fit a task, they fit none of {len(errors)}; {name!r}: "
            f"{type(first).__name__}: {first}"
        ) from first


@torch.no_grad()
def _try(task: Task, probe: Probe, settings: EmbedSettings, work: Work) -> None:
    loss = settings.loss_object
    probe = loss.tap(probe)
    device = choose_device(probe.module, work.device, owned=False)
    indices, skipped = draw_images(task, settings)[:_IMAGES], list[Failure]()
    feed = ImageFeed(task, probe, device, _IMAGES, 0, False, work.image_cache)
    with on_device(probe.module, device), feed.batches(indices, "", "skip", skipped) as batches:
        for batch in batches:
            loss.align(batch.labels, probe.features(batch.images))
