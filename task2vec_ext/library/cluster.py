"""Build a library on a Ray cluster: workers embed, this process looks what is there and writes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from .._util.pool import Pool
from ..embed.spread import Embedder, embed_spread, is_large

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data import Task
    from ..embed import Work
    from ..embedding import Embedding
    from ..probe.probe import Probe
    from .publish import Publisher


def build_on_cluster(
    address: str | bool, probe: Probe, work: Work, owned: bool, tasks: Sequence[Task], publisher: Publisher
) -> None:
    """Embed tasks on a Ray cluster: large ones by all workers together, then each of the others by one.

    Args:
        address: As for `Pool`.
        probe: The probe.
        work: Where and how a worker computes. It has no cache of features: what is in it would depend on the workers.
        owned: As for `choose_device`.
        tasks: The tasks.
        publisher: Writes what comes of them.
    """
    settings = publisher.made_with.settings
    work = replace(work, progress=False, image_cache=None, feature_cache=None, num_workers=work.num_workers or 0)
    gpus = work.device is None or str(work.device).startswith("cuda")
    make = partial(Embedder, probe, settings, work, owned)
    with Pool(address, make, gpus=gpus, cpus=1 + (work.num_workers or 0)) as pool:

        def embed(task: Task) -> tuple[str | None, Embedding]:
            return task.record(), embed_spread(task, probe, settings, pool, publisher.told.of_pass)

        for task in tasks:
            if is_large(task, settings) and not publisher.settled(task):
                publisher.take(task, partial(embed, task))
        rest = sorted((task for task in tasks if not is_large(task, settings)), key=len, reverse=True)
        calls = [("embed", task) for task in rest]
        for answer in pool.run(calls, lambda number: not publisher.settled(rest[number])):
            publisher.take(rest[answer.number], answer.result)
