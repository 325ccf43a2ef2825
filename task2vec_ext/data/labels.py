"""Labels: what counts as one, whether a task's labels are whole, and which images to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Labels = Tensor | np.ndarray[Any, Any] | Sequence[Any]

_SHOWN = 5  # enough missing labels to see the pattern, short enough to read


def as_label(value: Any) -> int | None:
    """Return the value as a label, or None if it is not one.

    Args:
        value: A candidate. Integers of Python, numpy and torch (0-d) are labels; bools, floats and strings
            are not.

    Returns:
        The label, of either sign.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, np.integer) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iu"
    ):
        return int(value)
    if isinstance(value, Tensor) and value.ndim == 0 and _is_integral(value):
        return int(value)
    return None


def label_tensor(labels: Labels, *, who: str) -> Tensor:
    """Return the labels as a tensor.

    Args:
        labels: ``[N]`` integers.
        who: The caller, for the error message.

    Returns:
        ``[N]`` int64 on the CPU.

    Raises:
        TypeError: If one is not an integer; names its index and value.
        ValueError: If a tensor or array of labels has not one dimension.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        labels = torch.from_numpy(labels.astype(np.int64))
    if isinstance(labels, (Tensor, np.ndarray)) and labels.ndim != 1:
        raise ValueError(f"{who}: expected labels of shape [N], got {list(labels.shape)}; give one class an image.")
    if isinstance(labels, Tensor) and _is_integral(labels):
        return labels.detach().to("cpu", torch.int64)
    values = []
    for index, value in enumerate(labels):
        label = as_label(value)
        if label is None:
            raise TypeError(not_a_label(value, who=who, where=f"index {index}"))
        values.append(label)
    return torch.tensor(values, dtype=torch.int64)


def not_a_label(value: Any, *, who: str, where: str) -> str:
    """Return the message for something that should have been a label.

    Args:
        value: What was found.
        who: The caller.
        where: The place it was found at.

    Returns:
        One line.
    """
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    return (
        f"{who}: expected integer labels 0…C−1, got {shown} ({type(value).__name__}) at {where}; "
        "number the classes, for instance by their position in sorted(set(names))."
    )


def check_labels(labels: Labels, *, who: str) -> int:
    """Return the number of classes C, after making sure that the labels are exactly 0…C−1.

    Args:
        labels: ``[N]`` integers.
        who: The caller, for the error messages.

    Returns:
        C, at least 2.

    Raises:
        TypeError: If a label is a string, a float or a bool; names its index and value.
        ValueError: If there are no labels, a single class, a negative label, or labels that no image has.
    """
    labels = label_tensor(labels, who=who)
    if len(labels) == 0:
        raise ValueError(f"{who}: expected a task with images, got an empty one; check its path or filter.")
    lowest = int(labels.min())
    if lowest < 0:
        index = int((labels < 0).nonzero()[0])
        raise ValueError(
            f"{who}: expected integer labels 0…C−1, got {int(labels[index])} at index {index}; "
            "number the classes from 0, and leave out images that have none."
        )
    present = torch.unique(labels).tolist()  # sorted
    if len(present) == 1:
        raise ValueError(
            f"{who}: expected at least two classes, got one (every image has label {present[0]}); "
            "a task needs something to tell apart."
        )
    num_classes = present[-1] + 1
    num_missing = num_classes - len(present)
    if num_missing:
        dots = ", …" if num_missing > _SHOWN else ""
        raise ValueError(
            f"{who}: expected every label 0…{present[-1]} to occur, got no image with "
            f"{', '.join(map(str, _first_missing(present)))}{dots} ({num_missing} missing); "
            "renumber the classes without gaps."
        )
    return num_classes


def _first_missing(present: list[int]) -> list[int]:
    missing: list[int] = []
    expected = 0
    for label in present:  # one label may be 10¹², so the gaps are not listed in full
        missing.extend(range(expected, min(label, expected + _SHOWN - len(missing))))
        expected = label + 1
    return missing


def draw(labels: Labels, num_samples: int | None, seed: int, *, balanced: bool = False) -> Tensor:
    """Return which images to use: without replacement, in proportion to the classes or equally many of each.

    Every class gets at least one image; the rest go by largest remainder. Which ones is decided by one
    random order of all images: the same seed gives the same images on every machine, however the classes
    are numbered.

    Args:
        labels: ``[N]`` integers.
        num_samples: Number of images; None or at least N takes all.
        seed: Seed of the random order.
        balanced: Equally many of each class; all of one that has fewer, and more of the others.

    Returns:
        ``[min(num_samples, N)]`` int64 indices, ascending.

    Raises:
        ValueError: If ``num_samples`` is smaller than the number of classes.
    """
    given = label_tensor(labels, who="draw")
    if num_samples is None or num_samples >= len(given):
        return torch.arange(len(given))
    _, classes, counts = torch.unique(given, return_inverse=True, return_counts=True)
    if num_samples < len(counts):
        raise ValueError(
            f"draw: expected num_samples of at least one image for each of the {len(counts)} classes, "
            f"got {num_samples}; raise it or pass None."
        )
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    by_class = order[classes[order].argsort(stable=True)]  # class after class, each in random order
    start = counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    # Equal remainders go to the class whose image comes first, so that low numbers have no advantage.
    divide = _level if balanced else _apportion
    quota = divide(counts.tolist(), num_samples, place[by_class[start]].tolist())
    rank = torch.arange(len(order)) - start[classes[by_class]]
    return by_class[rank < quota[classes[by_class]]].sort().values


def _apportion(counts: list[int], total: int, tie: list[int]) -> Tensor:
    """Divide ``total`` over classes in proportion to ``counts``, at least 1 each: int64 ``[C]``."""
    quota = [1] * len(counts)
    large = list(range(len(counts)))
    # A class with a share below one image gets one, which leaves less for the others: repeat until none is.
    while True:
        seats = total - (len(counts) - len(large))
        size = sum(counts[c] for c in large)
        still_large = [c for c in large if counts[c] * seats >= size]
        if len(still_large) == len(large):
            break
        large = still_large
    for c in large:
        quota[c] = counts[c] * seats // size
    by_remainder = sorted(large, key=lambda c: (-(counts[c] * seats % size), tie[c]))
    for c in by_remainder[: seats - sum(quota[c] for c in large)]:
        quota[c] += 1
    return torch.tensor(quota)


def _level(counts: list[int], total: int, tie: list[int]) -> Tensor:
    """Divide ``total`` over classes equally, no more than ``counts``: int64 ``[C]``."""
    quota = torch.zeros(len(counts), dtype=torch.int64)
    smallest_first = sorted(range(len(counts)), key=lambda c: (counts[c], tie[c]))
    for taken, c in enumerate(smallest_first):  # what a small class lacks goes to those after it
        quota[c] = min(counts[c], (total - int(quota.sum())) // (len(counts) - taken))
    return quota


def _is_integral(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
