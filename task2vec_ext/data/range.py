"""Whether a task's pixels use the range of their type: 12-bit values read as 16-bit are nearly black images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from .._util.warnings import Task2VecWarning
from .task import Task

_ENOUGH, _FEWEST = 32, 6
"""Images that are judged at once, and the fewest that are judged at the end."""
_REFUSED, _SUSPICIOUS = 1 / 15, 1 / 4
"""Shares of the range: 12 bits of 16 use 1/16, and values up to 16 as 8-bit 1/15.9; 14 bits of 16 use 1/4."""


class RangeCheck:
    """Judges the highest value of a task's first images: refuses below 1/15 of the range, and warns up to 1/4.

    Images of 8 and of more bits are judged apart. A task with a `max_value` is not judged.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        """Begin with no image."""
        self._task = task
        self._seen: dict[torch.dtype, list[float]] = {}  # each image's share of the range; a judged type has _ENOUGH

    def add(self, peaks: Sequence[tuple[torch.dtype, float]]) -> None:
        """Take the type and the highest value of some images, and judge a type once there are enough.

        Raises:
            ValueError: If all images are nearly black.
        """
        for dtype, peak in peaks:
            shares = self._seen.setdefault(dtype, [])
            if len(shares) < _ENOUGH:
                shares.append(peak / 255 if dtype == torch.uint8 else peak)
                if len(shares) == _ENOUGH:
                    self._judge(dtype, shares)

    def end(self) -> None:
        """Judge what is left; there are no more images.

        Raises:
            ValueError: If all images are nearly black.
        """
        for dtype, shares in self._seen.items():
            if _FEWEST <= len(shares) < _ENOUGH:
                self._judge(dtype, shares)

    def _judge(self, dtype: torch.dtype, shares: Sequence[float]) -> None:
        share = max(shares)
        if self._task.max_value is not None or share > _SUSPICIOUS:
            return
        if share == 0:
            raise ValueError(
                f"batches: expected images that are not black, got {len(shares)} images of {self._task.name!r} with "
                "the value 0 in every pixel; check how they were written (PIL keeps the upper 8 bits of 16-bit colour)."
            )
        white = 255 if dtype == torch.uint8 else 65535
        bits = next(bits for bits in range(1, 17) if round(share * white) < 2**bits)
        message = (
            f"batches: expected pixels up to the value of white ({white}; 1 for floats), got at most {share:.1%} of it "
            f"in {len(shares)} images of {self._task.name!r}; if they have {bits} bits, say max_value={2**bits - 1} "
            f"(on the command line PATH?max_value={2**bits - 1}); if they are so dark, max_value={white} "
            "(1 for floats)"
        )
        if share <= _REFUSED:
            raise ValueError(f"{message}.")
        warnings.warn(message, Task2VecWarning, stacklevel=4)
