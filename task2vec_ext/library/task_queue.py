"""Several processes share the tasks of a library: whoever is free takes the next, and the first process records."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..embed.team import RanksLostError, Team
from .index import Entry

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_POLL_SECONDS = 0.2


def share_tasks(team: Team, count: int, work: Callable[[int], Entry], record: Callable[[int, Entry], None]) -> None:
    """Do each of `count` tasks on one of the ranks, all of which call this, or raise RanksLostError where one fails.

    `work` does task number i and returns its entry. `record` writes it, as it comes, on the first rank alone, in one
    thread.
    """
    queue = TaskQueue(team.store(), count)
    try:
        if team.rank > 0:
            for number in queue.claim():
                queue.report(number, work(number))
            queue.wait_closed()
        else:
            _work_and_record(queue, work, record)
    except BaseException:
        queue.give_up()
        raise
    team.gather(None)  # the store may end with the first rank's process


def _work_and_record(queue: TaskQueue, work: Callable[[int], Entry], record: Callable[[int, Entry], None]) -> None:
    stop = threading.Event()

    def record_all() -> None:
        for number, entry in queue.reports(stop):
            record(number, entry)

    with ThreadPoolExecutor(1) as pool:
        recording = pool.submit(record_all)
        try:
            for number in queue.claim():
                if recording.done():
                    recording.result()  # raises where it failed: nothing further would be recorded
                queue.report(number, work(number))
            recording.result()
        finally:
            stop.set()
    queue.close()


class TaskQueue:
    """Tasks in a store that all ranks reach: whoever is free takes the next."""

    def __init__(self, store: Store, tasks: int) -> None:
        """Begin a queue of so many tasks where the store is empty, or join the other ranks'."""
        self._store, self._tasks = store, tasks

    def claim(self) -> Iterator[int]:
        """Yield the numbers of tasks that are this rank's to do, until none is left."""
        while (number := self._store.add("claimed", 1) - 1) < self._tasks:
            self._check_going()
            yield number

    def report(self, number: int, entry: Entry) -> None:
        """Say what came of a task."""
        position = self._store.add("reported", 1) - 1
        self._store.set(f"report {position}", json.dumps([number, asdict(entry)]))

    def reports(self, stop: threading.Event) -> Iterator[tuple[int, Entry]]:
        """Yield what came of every task, as the ranks say it, until all have or `stop` is set."""
        for position in range(self._tasks):
            while not self._store.check([f"report {position}"]):
                self._check_going()
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
            self._check_going()
            threading.Event().wait(_POLL_SECONDS)

    def give_up(self) -> None:
        """Tell the others that this rank cannot go on."""
        self._store.set("given up", "")

    def _check_going(self) -> None:
        if self._store.check(["given up"]):
            raise RanksLostError("build_library: expected all ranks to go on, but one of them failed; see its error.")
