"""Workers of a Ray cluster, each with an object of ours, that share calls; lost ones are replaced."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import socket
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .warnings import Task2VecWarning

_ATTEMPTS = 4
"""Workers that a call may lose before it is given up: it may be what kills them (lack of memory)."""

_SECONDS = 5.0
"""Between two looks at which nodes the cluster has."""

_PATIENCE = 120.0
"""Seconds without any node that can work: a cluster may be starting, or coming back."""


class ClusterError(RuntimeError):
    """The cluster cannot work, whatever the call."""


class Answer(NamedTuple):
    """What came of a call."""

    number: int
    value: Any
    error: Exception | None

    def result(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class Pool:
    """Workers on all nodes of a Ray cluster, also on those that come later: one a GPU, or one a CPU share.

    Args:
        address: Of a cluster; ``"auto"`` or True: the one that runs here, else a new one of this machine alone;
            ``"local"``: a new one.
        make: Makes a worker's object, in the worker; pickled.
        gpus: Whether a worker takes a GPU, where the cluster has any.
        cpus: How many CPUs a worker takes.

    Raises:
        ImportError: If Ray is not installed.
        ClusterError: If there is no cluster at the address.
    """

    def __init__(self, address: str | bool, make: Callable[[], Any], *, gpus: bool, cpus: int) -> None:
        """Connect; workers start with the first calls."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        try:
            import ray
        except ImportError as error:
            raise ImportError(f"ray: expected Ray, got: {error}; pip install 'task2vec_ext[ray]'.") from error
        self._ray, self._gpus, self._cpus = ray, gpus, cpus
        self._ours = not ray.is_initialized()
        if self._ours:
            where = None if address in (True, "auto") else str(address)
            try:
                if where not in (None, "local"):
                    _check_answers(where)  # Ray itself asks for minutes
                ray.init(where, log_to_driver=False, logging_level="ERROR")
            except (OSError, RuntimeError, ValueError) as error:
                raise ClusterError(
                    f"ray: expected a Ray cluster at {address!r}, got: {error}; see to HOST:PORT (ray status), or "
                    "leave the address to 'auto'."
                ) from error
        made = (importlib.metadata.version("task2vec_ext"), os.getcwd(), sys.path, pickle_by_ray(make))
        self._worker, self._made = ray.remote(_worker_class()), ray.put(made)
        self._starting: dict[Any, Any] = {}
        self._free: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}
        self._lost = Counter[int]()
        self._alone_since, self._failed_starts = time.monotonic(), 0

    def __enter__(self) -> Pool:
        """Use it as a context: at its end, workers and our own connection end."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers, and the connection where it is ours."""
        for actor in (*self._starting.values(), *self._free, *(actor for actor, _ in self._busy.values())):
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()

    def put(self, value: Any) -> Any:
        """Return a reference to a value, which calls take as an argument; it is sent to each node once."""
        return self._ray.put(value)

    def all(self, calls: Sequence[tuple[Any, ...]], ended: Callable[[int], None] = lambda _: None) -> list[Any]:
        """Return what each call returns, in their order, or raise the first error; `ended` is told each number."""
        values: dict[int, Any] = {}
        for answer in self.run(calls):
            values[answer.number] = answer.result()
            ended(answer.number)
        return [values[number] for number in range(len(calls))]

    def run(self, calls: Sequence[tuple[Any, ...]], wanted: Callable[[int], bool] = lambda _: True) -> Iterator[Answer]:
        """Yield what comes of calls ``(method, *arguments)`` as they end; a worker that is lost costs its call nothing.

        Args:
            calls: The calls, the longest first.
            wanted: Whether a call is still to be done, asked right before it begins; those that are not yield nothing.

        Raises:
            ClusterError: If workers cannot start, or no node is left.
        """
        waiting, self._lost = deque(range(len(calls))), Counter()
        self._alone_since = time.monotonic()
        while waiting or self._busy:
            self._start_workers(len(waiting) + len(self._busy))
            while waiting and self._free:
                if wanted(number := waiting.popleft()):
                    actor = self._free.pop()
                    method, *arguments = calls[number]
                    self._busy[actor.call.remote(method, *arguments)] = actor, number
            pending = [*self._busy, *self._starting]
            if not pending:
                time.sleep(min(_SECONDS, 1) if waiting else 0)
                continue
            for ready in self._ray.wait(pending, timeout=_SECONDS)[0]:
                if ready in self._starting:
                    self._started(ready)
                elif (answer := self._ended(ready)) is not None:
                    yield answer
                else:
                    waiting.appendleft(self._busy.pop(ready)[1])

    def _start_workers(self, calls: int) -> None:
        """Start a worker for every place of the cluster that has none, as far as there are calls."""
        places, take_gpu = self._places()
        workers = len(self._starting) + len(self._free) + len(self._busy)
        for _ in range(min(places, calls) - workers):
            actor = self._worker.options(num_cpus=self._cpus, num_gpus=int(take_gpu)).remote(self._made)
            self._starting[actor.call.remote("")] = actor
        if places or self._busy:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > _PATIENCE:
            raise ClusterError(
                f"ray: expected a node with {self._cpus} free CPUs{' and a GPU' * take_gpu}, the cluster has none "
                "(any more); the same call continues once it has."
            )

    def _places(self) -> tuple[int, bool]:
        """Return how many workers fit on the nodes that live, and whether each takes a GPU."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        take_gpu = self._gpus and any(node.get("GPU", 0) >= 1 for node in nodes)
        fits = [int(node.get("CPU", 0) // self._cpus) for node in nodes]
        if take_gpu:
            fits = [min(fit, int(node.get("GPU", 0))) for fit, node in zip(fits, nodes, strict=True)]
        return sum(fits), take_gpu

    def _started(self, ready: Any) -> None:
        actor = self._starting.pop(ready)
        try:
            self._ray.get(ready)
        except self._ray.exceptions.RayActorError as error:
            self._failed_starts += 1
            if error.actor_init_failed or self._failed_starts > _ATTEMPTS:
                raise ClusterError(f"ray: expected workers that start, got: {_last_line(error)}") from error
        else:
            self._failed_starts = 0
            self._free.append(actor)

    def _ended(self, ready: Any) -> Answer | None:
        """Return what came of a call, or None where its worker was lost, and it is to be done again."""
        actor, number = self._busy[ready]
        try:
            value, error, told = self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as failed:  # its arguments cannot be read there
            value, told = None, []
            error = RuntimeError(f"ray: expected a call that a worker can read, got: {_last_line(failed)}")
            self._free.append(actor)
        except self._ray.exceptions.RayError as lost:
            self._ray.kill(actor)
            self._lost[number] += 1
            if self._lost[number] < _ATTEMPTS:
                return None
            value, told = None, []
            error = RuntimeError(f"ray: lost {_ATTEMPTS} workers in a row that did this; the last: {_last_line(lost)}")
        else:
            self._free.append(actor)
        del self._busy[ready]
        for text in told:
            warnings.warn(text, Task2VecWarning, stacklevel=4)
        return Answer(number, value, error)


def _check_answers(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


def pickle_by_ray(value: Any) -> bytes:
    """Return a value pickled so that functions and classes of a script or a notebook can be sent, too."""
    from ray import cloudpickle

    return bytes(cloudpickle.dumps(value))


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def _worker_class() -> type:
    """The class of a worker, which comes to be on a node before anything of this package is imported there."""

    class Worker:
        def __init__(self, made: tuple[str, str, list[str], bytes]) -> None:
            import importlib.metadata
            import os
            import pickle
            import sys

            version, folder, paths, packed = made
            try:
                found = importlib.metadata.version("task2vec_ext")
            except importlib.metadata.PackageNotFoundError:
                found = "none"
            if found != version:
                node = os.uname().nodename
                raise RuntimeError(f"task2vec_ext {version} here, {found} on node {node}; install the same on all.")
            if os.path.isdir(folder):
                os.chdir(folder)  # paths of images may be relative
            # Modules come from where the driver has them: Ray puts its folder first, which may be our source tree.
            sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
            self._inner = pickle.loads(packed)()

        def call(self, method: str, *arguments: Any) -> Any:
            """Return value, exception and warnings of a call; nothing for the call without a name."""
            import warnings

            from task2vec_ext._util.pool import portable
            from task2vec_ext._util.warnings import Task2VecWarning

            if not method:
                return None
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", Task2VecWarning)
                try:
                    value, error = getattr(self._inner, method)(*arguments), None
                except Exception as raised:
                    value, error = None, portable(raised)
            return value, error, [str(one.message) for one in told if issubclass(one.category, Task2VecWarning)]

    return Worker


def portable(error: Exception) -> Exception:
    """Return an error, or one like it that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
