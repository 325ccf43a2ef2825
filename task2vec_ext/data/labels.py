"""Labels: check that they are the classes 0…C−1, number names, and draw images by them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Labels = Tensor | np.ndarray[Any, Any] | Sequence[Any]

_SHOWN = 5  # enough missing labels to see the pattern, short enough to read
_LARGEST = 2**63 - 1  # of int64


def checked_label(value: Any, *, who: str, where: str) -> int:
    """Return an integer of Python, numpy or torch (0-d) as an int, or raise for anything else, bools included."""
    number = value.item() if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0 else value
    if isinstance(number, (int, np.integer)) and not isinstance(number, bool):
        if abs(int(number)) > _LARGEST:
            raise ValueError(f"{who}: expected labels 0…C−1, got {number} at {where}; number the classes from 0.")
        return int(number)
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    raise TypeError(
        f"{who}: expected integer labels 0…C−1, got {shown} ({type(value).__name__}) at {where}; {_advice(number)}."
    )


def label_tensor(labels: Labels, *, who: str) -> Tensor:
    """Return ``[N]`` integer labels as an int64 tensor on the CPU, or raise at the first that is none."""
    if isinstance(labels, (Tensor, np.ndarray)):
        if labels.ndim != 1:
            raise ValueError(
                f"{who}: expected labels of shape [N], got {list(labels.shape)}; "
                + (
                    "pass one number for each image."
                    if labels.ndim == 0 or not len(labels)
                    else f"{_advice(labels[0])}."
                )
            )
        if isinstance(labels, Tensor):
            labels = np.asarray(labels.tolist()) if labels.is_floating_point() else labels.detach().cpu().numpy()
        if labels.dtype.kind in "iu" and not (labels > _LARGEST).any():
            return torch.from_numpy(labels.astype(np.int64))
    values = [checked_label(value, who=who, where=f"index {index}") for index, value in enumerate(labels)]
    return torch.tensor(values, dtype=torch.int64)


def _advice(label: Any) -> str:
    """What to do about a label that is no integer."""
    if label is None or (isinstance(label, (float, np.floating)) and math.isnan(label)):
        return "leave out images that have no label"
    if isinstance(label, (bool, np.bool_)):
        return "convert them with int(label)"
    if isinstance(label, (float, np.floating)):
        whole = "convert them to integers (labels.long(), labels.astype(int)), or " if float(label).is_integer() else ""
        return f'{whole}pass loss="regression" if they are numbers to predict'
    if isinstance(label, str):
        return "number the classes, or give the data set a list of its labels, .targets"
    if isinstance(label, Mapping):
        return "make the data set return the image's class alone"
    try:
        values = np.asarray(label.detach().cpu() if isinstance(label, Tensor) else label)
    except ValueError:  # lists of different lengths
        return "give every image one class"
    if values.dtype.kind not in "biuf" or values.size == 0:
        return "give every image one class, a number or a name"
    if values.size == 1:
        return "remove the extra dimension: labels.squeeze(-1)"
    if values.ndim > 1:
        return 'pass loss="dense" for masks, or give every image one class'
    if np.isclose(values.sum(), 1) and (values >= 0).all():
        return 'pass labels.argmax(-1) (they look one-hot), or loss="multilabel" if an image may have several labels'
    if np.isin(values, (0, 1)).all():
        return 'pass loss="multilabel" (an image has several labels)'
    return 'give every image one class, or pass loss="multilabel" or loss="regression"'


def tidy(name: str) -> str:
    """Return a name in the form that is compared: Unicode's composed form (NFC), without blanks at its ends.

    The same letters have two forms in Unicode; file systems, archives and tables differ in which one they keep.
    """
    return unicodedata.normalize("NFC", name).strip()


def are_names(labels: Any) -> bool:
    """Return whether the first of some labels is a text."""
    return len(labels) > 0 and isinstance(labels[0], str)


def number_names(names: Sequence[Any], *, who: str, where: str = "index") -> tuple[Tensor, tuple[str, ...]]:
    """Return ``[N]`` classes 0…C−1 of labels that are text, and the classes' names, sorted.

    Whole numbers are sorted by size, before other names. Names that differ in blanks at their ends, or in the Unicode
    form of the same letters, are one class.

    Args:
        names: The labels.
        who: The caller, for messages.
        where: What a label's number counts, for messages.

    Raises:
        TypeError: If some are not text.
        ValueError: If some are empty.
    """
    for index, name in enumerate(names):
        if not isinstance(name, str):
            advice = (
                _advice(name) if name is None or isinstance(name, float) else "make all labels text, or all integers"
            )
            raise TypeError(f"{who}: expected labels that are all text, got {name!r:.60} at {where} {index}; {advice}.")
        if not name.strip():
            raise ValueError(
                f"{who}: expected a label for every image, got an empty text at {where} {index}; fill it in, or leave "
                "the image out."
            )
    forms = {name: tidy(name) for name in set(names)}
    classes = tuple(sorted(set(forms.values()), key=_by_size))
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[forms[name]] for name in names], dtype=torch.int64), classes


def _by_size(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if re.fullmatch(r"-?\d{1,18}", name) else (1, 0, name)


def check_labels(labels: Labels, *, who: str) -> int:
    """Return the number of classes C, at least 2, of ``[N]`` labels that are exactly 0…C−1.

    Args:
        labels: ``[N]`` integers.
        who: The caller, for error messages.

    Raises:
        TypeError: If a label is not an integer. The message has its index and value.
        ValueError: If there are no labels, only one class, a negative label, or a class without images.
    """
    labels = label_tensor(labels, who=who)
    if len(labels) == 0:
        raise ValueError(f"{who}: expected a task with images, got an empty one; check its path or filter.")
    if labels.min() < 0:
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
        # The first few: a label may be 10¹², so the gaps cannot all be listed.
        missing = sorted(set(range(len(present) + _SHOWN)) - set(present))[: min(num_missing, _SHOWN)]
        dots = ", …" if num_missing > _SHOWN else ""
        raise ValueError(
            f"{who}: expected every label 0…{present[-1]} to occur, got no image with "
            f"{', '.join(map(str, missing))}{dots} ({num_missing} missing); renumber the classes without gaps."
        )
    return num_classes


def draw(labels: Labels, num_samples: int | None, seed: int, *, balanced: bool = False) -> Tensor:
    """Return ascending indices of a random choice of images: in proportion to the classes, or equally many of each.

    Images are drawn without replacement. Every class gets at least one; the rest go by largest remainder. One random
    order of all images decides which: a seed gives the same images on every machine, however the classes are numbered.

    Args:
        labels: ``[N]`` integers.
        num_samples: Number of images; None, or N and more, takes all.
        seed: Of the random order.
        balanced: Whether to take equally many of each class. A class with too few gives all, the others more.

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
    # Ties go to the class whose image comes first in the random order, so that low numbers have no advantage.
    divide = _equal_quotas if balanced else _proportional_quotas
    quota = divide(counts.tolist(), num_samples, place[by_class[start]].tolist())
    rank = torch.arange(len(order)) - start[classes[by_class]]
    return by_class[rank < quota[classes[by_class]]].sort().values


def _proportional_quotas(counts: list[int], total: int, tie: list[int]) -> Tensor:
    """Divide ``total`` over classes in proportion to ``counts``, at least 1 each: int64 ``[C]``."""
    quota = [1] * len(counts)
    large: list[int] = []
    still_large = list(range(len(counts)))
    # A class with a share below one image gets one, which leaves less for the others: repeat until there is none.
    while large != still_large:
        large = still_large
        seats = total - (len(counts) - len(large))
        size = sum(counts[c] for c in large)
        still_large = [c for c in large if counts[c] * seats >= size]
    for c in large:
        quota[c] = counts[c] * seats // size
    by_remainder = sorted(large, key=lambda c: (-(counts[c] * seats % size), tie[c]))
    for c in by_remainder[: seats - sum(quota[c] for c in large)]:
        quota[c] += 1
    return torch.tensor(quota)


def _equal_quotas(counts: list[int], total: int, tie: list[int]) -> Tensor:
    """Divide ``total`` over classes equally, at most ``counts``: int64 ``[C]``."""
    quota = torch.zeros(len(counts), dtype=torch.int64)
    smallest_first = sorted(range(len(counts)), key=lambda c: (counts[c], tie[c]))
    for taken, c in enumerate(smallest_first):  # what a small class lacks goes to those after it
        quota[c] = min(counts[c], (total - int(quota.sum())) // (len(counts) - taken))
    return quota
