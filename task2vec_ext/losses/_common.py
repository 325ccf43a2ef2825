"""What the losses share: random numbers per image, and checks of options and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

WHO = "fisher_embed"  # the caller, in messages


def per_image(
    index: Tensor, seed: int, draw: Callable[[np.random.Generator], np.ndarray[Any, Any]], device: torch.device
) -> Tensor:
    """Return random numbers ``[B, …]``: `draw` gives each image's, from a counter-based generator of (seed, image).

    They are drawn on the CPU, while a GPU computes what was queued before.

    Args:
        index: ``[B]``, the images' numbers; on the CPU, or a GPU is waited for.
        seed: 0 … 2⁶³ − 1.
        draw: What to draw from one image's generator.
        device: Where the numbers are wanted.
    """
    philox = np.random.Philox(key=[seed, 0])
    generator, start = np.random.Generator(philox), philox.state
    rows = []
    for image in index.tolist():
        start["state"]["key"][1] = image  # a new generator for every image would take 30 times as long
        philox.state = start
        rows.append(draw(generator))
    return torch.from_numpy(np.stack(rows)).to(device, non_blocking=True)


def signs_per_image(index: Tensor, seed: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return −1 or 1 with equal probability, ``[B, *shape]`` int64; arguments as `per_image`'s.

    The same numbers as those of ``Generator.integers(0, 2)``, which takes ten times as long.
    """
    count = math.prod(shape)
    words = per_image(index, seed, lambda random: random.bit_generator.random_raw(-(-count // 2)), device)
    words = words.view(torch.int64)
    # The highest bit of each 32-bit half, the lower half first.
    bits = torch.stack([words >> 31, words >> 63], 2).flatten(1)[:, :count] & 1
    return (bits * 2 - 1).reshape(-1, *shape)


def check_some(targets: Tensor) -> None:
    if len(targets) == 0:
        raise ValueError(f"{WHO}: expected a task with images, got an empty one; check its path or filter.")


def checked_numbers(values: Iterable[float] | None, what: str) -> tuple[float, ...] | None:
    """Return an option's positive numbers as a tuple, or None where it is not given."""
    if values is None:
        return None
    numbers = tuple(float(value) for value in values)
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{WHO}: expected {what} as positive numbers, got {numbers}.")
    return numbers


def check_lengths(values: tuple[float, ...] | None, num_outputs: int, what: str) -> None:
    """Raise unless an option that is given has one number per output."""
    if values is not None and len(values) != num_outputs:
        raise ValueError(f"{WHO}: expected {what} of {num_outputs} numbers, got {len(values)}.")


def checked_head_options(class_weights: Iterable[float] | None, label_smoothing: float) -> tuple[float, ...] | None:
    """Return the class weights as a tuple, once these and the label smoothing are possible."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{WHO}: expected label_smoothing in [0, 1), got {label_smoothing}.")
    return checked_numbers(class_weights, "class_weights")
