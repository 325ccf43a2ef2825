"""Several processes that work on one thing: the ranks of a torch.distributed group."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")


class RanksLostError(RuntimeError):
    """A rank was lost or is out of step: end all ranks, and start them again."""


class Team:
    """The ranks of a group, or one process alone.

    What they exchange is small and on the CPU (features, float64 sums, errors), so any backend works. An exception on
    one rank is raised on all of them, so that none waits forever.

    Args:
        group: The ranks; None: this process alone.
        doing: What all of them are doing now: a rank that is doing something else is an error.
    """

    def __init__(self, group: ProcessGroup | None, doing: str = "") -> None:
        """Read rank and size from the group."""
        self._group, self._doing = group, doing
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()

    def share(self, items: Tensor, block: int) -> Tensor:
        """Return this rank's part of ``items [n, …]``: blocks of `block` in a row, dealt to the ranks in turn."""
        return torch.cat([items[:0], *items.split(block)[self.rank :: self.size]])

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, on every rank.

        Raises:
            RanksLostError: If a rank has ended, does not answer, or is doing something else by now.
        """
        if self.size == 1:
            return [value]
        from torch.distributed import all_gather_object

        found: list[tuple[str, T]] = [(self._doing, value)] * self.size
        try:
            all_gather_object(found, (self._doing, value), group=self._group)
        except RuntimeError as error:
            raise RanksLostError(f"expected all ranks to answer, but: {error}") from error
        others = {doing for doing, _ in found} - {self._doing}
        if others:
            raise RanksLostError(
                f"expected all ranks to be at {self._doing!r}, one is at {others.pop()!r}; see its error."
            )
        return [value for _, value in found]

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

    def store(self) -> Store:
        """Return an empty store that all ranks reach; they call this together.

        Raises:
            RuntimeError: If there is one process alone.
        """
        from torch.distributed.distributed_c10d import PrefixStore

        if self._group is None:
            raise RuntimeError("Team: expected ranks of a group, got one process.")
        shared = self._group.get_group_store()
        number = self.first(lambda: shared.add("task2vec_ext", 1))
        return PrefixStore(f"task2vec_ext/{number}", shared)


@contextmanager
def launched_ranks() -> Iterator[ProcessGroup | None]:
    """Yield the group of the processes that torchrun started with this one, or None where it runs alone.

    Each takes the GPU of its local rank, where there are GPUs. NCCL is used for GPU tensors, gloo for the rest.
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


def _portable(error: Exception) -> Exception:
    """The error, or one like it that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
