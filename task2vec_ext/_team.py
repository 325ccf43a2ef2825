"""Several processes that do one thing together: the ranks of a torch.distributed group."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import torch

from ._index import Entry

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

_POLL_SECONDS = 0.2


class Team:
    """The ranks of a group, or one process alone.

    What they exchange is small and on the CPU (features, float64 sums, errors), so that any backend will do. What fails
    on one rank is raised on all of them: nobody is left waiting.

    Args:
        group: the ranks; None: this process alone.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        """Ask the group who is in it."""
        self._group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()

    def share(self, items: Tensor, block: int) -> Tensor:
        """Return this rank's part of ``items [n, …]``: blocks of `block` in a row, dealt to the ranks in turn."""
        return torch.cat([items[:0], *items.split(block)[self.rank :: self.size]])

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, on every rank."""
        if self.size == 1:
            return [value]
        from torch.distributed import all_gather_object

        values: list[T] = [value] * self.size
        all_gather_object(values, value, group=self._group)
        return values

    def attempt(self, work: Callable[[], T]) -> T:
        """Return what `work` makes on this rank, or raise the first exception of any of the ranks."""
        if self.size == 1:
            return work()
        error: Exception | None = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        for other in self.gather(None if error is None else _portable(error)):
            if other is not None:
                raise other from error
        return result

    def first(self, work: Callable[[], T]) -> T:
        """Return, on every rank, what `work` makes on the first."""
        mine = self.attempt(lambda: work() if self.rank == 0 else None)
        result = self.gather(mine)[0]
        return result  # type: ignore[return-value]  # of the rank that did the work

    def queue(self, tasks: int) -> TaskQueue:
        """Return a queue that all ranks work on; they call this together.

        Args:
            tasks: how many there are.
        """
        from torch.distributed.distributed_c10d import PrefixStore

        assert self._group is not None
        store = self._group.get_group_store()
        number = self.first(lambda: store.add("task2vec_ext/queues", 1))
        return TaskQueue(PrefixStore(f"task2vec_ext/{number}", store), tasks)


@contextmanager
def launched_ranks() -> Iterator[ProcessGroup | None]:
    """Yield the group of all processes that torchrun started together with this one; None: it is alone.

    Each takes the GPU of its number on its machine, where there are GPUs. NCCL for what is on them, gloo for the rest.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield None
        return
    import torch.distributed as dist

    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


class TaskQueue:
    """Who does which task, and what came of it, in a store that all ranks reach: whoever is free takes the next.

    Args:
        store: of the group's, this queue's own part.
        tasks: how many there are.
    """

    def __init__(self, store: Store, tasks: int) -> None:
        """Keep both."""
        self._store, self._tasks = store, tasks

    def claim(self) -> Iterator[int]:
        """Yield the numbers of tasks that are this rank's to do, until none is left."""
        while (number := self._store.add("claimed", 1) - 1) < self._tasks:
            yield number

    def report(self, number: int, entry: Entry) -> None:
        """Say what came of a task."""
        position = self._store.add("reported", 1) - 1
        self._store.set(f"report {position}", json.dumps([number, asdict(entry)]))

    def reports(self, stop: threading.Event) -> Iterator[tuple[int, Entry]]:
        """Yield what came of every task, as the ranks say it, until all have or `stop` is set."""
        for position in range(self._tasks):
            while not self._store.check([f"report {position}"]):
                if stop.wait(_POLL_SECONDS):
                    return
            number, fields = json.loads(self._store.get(f"report {position}"))
            yield number, Entry(**fields)

    def close(self) -> None:
        """Say that all reports have been dealt with."""
        self._store.set("closed", "")

    def wait_closed(self) -> None:
        """Return once they have, however long that takes: collectives time out, and a task may take hours."""
        while not self._store.check(["closed"]):
            threading.Event().wait(_POLL_SECONDS)


def _portable(error: Exception) -> Exception:
    """The error, or one like it that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
