"""Build a library on a Ray cluster: workers embed, this process looks what is there and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from .._util.pool import Pool
from ..embed.spread import Embedder, embed_spread, is_large
from .publish import Outcome

if TYPE_CHECKING:
    from .._util.progress import LibraryProgress
    from ..data import Task
    from ..embed import Work
    from ..probe.probe import Probe
    from .publish import Publisher


def build_on_cluster(
    address: str | bool,
    probe: Probe,
    work: Work,
    owned: bool,
    tasks: Sequence[Task],
    publisher: Publisher,
    told: LibraryProgress,
) -> None:
    """Embed tasks on a Ray cluster: large ones by all workers together, then each of the others by one.

    Args:
        address: As for `Pool`.
        probe: The probe.
        work: Where and how a worker computes. It has no cache of features: what is in it would depend on the workers.
        owned: As for `choose_device`.
        tasks: The tasks.
        publisher: Writes what comes of them.
        told: The progress.
    """
    settings = publisher.made_with.settings
    work = replace(work, progress=False, image_cache=None, feature_cache=None, num_workers=work.num_workers or 0)
    make = partial(Embedder, probe, settings, work, owned)
    gpus = work.device is None or str(work.device).startswith("cuda")

    def end(task: Task, outcome: Outcome) -> None:
        told.ended(task.name, len(task), outcome.error)

    def wanted(task: Task) -> bool:
        if (outcome := publisher.settled(task)) is not None:
            end(task, outcome)
        return outcome is None

    with Pool(address, make, gpus=gpus, cpus=1 + (work.num_workers or 0)) as pool:
        for task in filter(wanted, [task for task in tasks if is_large(task, settings)]):
            try:
                record, embedding = task.record(), embed_spread(task, probe, settings, pool, told.of_pass)
            except Exception as error:  # whatever one task does, the others go on
                end(task, publisher.fail(task, error))
            else:
                end(task, publisher.publish(task, record, embedding))
        rest = sorted((task for task in tasks if not is_large(task, settings)), key=len, reverse=True)
        for answer in pool.run([("embed", task) for task in rest], lambda number: wanted(rest[number])):
            task = rest[answer.number]
            if answer.error is None:
                end(task, publisher.publish(task, *answer.value))
            else:
                end(task, publisher.fail(task, answer.error))
