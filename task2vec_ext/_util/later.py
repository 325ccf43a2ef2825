"""Numbers of a GPU, read without waiting for the work that is queued behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def later(value: Tensor) -> Callable[[], Tensor]:
    """Return a function that returns `value` on the CPU; on a GPU it waits for what is queued now, not for more."""
    copy = value.to("cpu", non_blocking=value.is_cuda)
    if not value.is_cuda:
        return lambda: copy
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(value.device))

    def read() -> Tensor:
        arrived.synchronize()
        return copy

    return read
