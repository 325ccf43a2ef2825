"""What the losses share: random numbers per image, and checks of options and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

WHO = "fisher_embed"  # the caller, in messages


def per_image(index: Tensor, seed: int, draw: Callable[[np.random.Generator], np.ndarray[Any, Any]]) -> Tensor:
    """Return random numbers ``[B, …]``: `draw` gives each image's, from a counter-based generator of (seed, image)."""
    rows = [draw(np.random.Generator(np.random.Philox(key=[seed, int(i)]))) for i in index]
    return torch.from_numpy(np.stack(rows))


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
