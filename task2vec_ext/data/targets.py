"""Targets: what a task's items carry beside the image, and how it is read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .labels import as_label, not_a_label
from .preprocess import Preprocess


class Target(ABC):
    """One kind of target. Its `read` turns what a data set gives into what batches stack."""

    named: ClassVar[bool] = True
    """Whether the data set's class names name the model's outputs."""

    def split(self, item: Any, where: str) -> tuple[Any, Any]:
        """Return the image and the target of an item.

        Args:
            item: As the data set gives it.
            where: What messages call it.

        Returns:
            The two, as they are.

        Raises:
            TypeError: If it is not a pair.
        """
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise TypeError(
                f"Task: expected pairs of (image, label), got {kind_of(item)} for {where}; "
                "wrap the data set so that its items are pairs."
            )
        return item[0], item[1]

    @abstractmethod
    def read(self, value: Any, *, who: str, where: str) -> Any:
        """Return an image's target: an int, or a tensor of one dtype.

        Args:
            value: As the data set gives it.
            who: The caller, for messages.
            where: What messages call the image.

        Returns:
            The target.

        Raises:
            TypeError: If it is of another kind.
            ValueError: If a value is impossible.
        """

    def prepare(self, target: Any, image: Tensor, preprocess: Preprocess | None) -> Tensor:
        """Return the target of the probe's input, which `preprocess` makes of the image.

        Args:
            target: As `read` returns it.
            image: ``[3, H, W]``, before `preprocess`.
            preprocess: Applied to the image, or None.

        Returns:
            A tensor of the same shape for every image of a task.
        """
        return torch.as_tensor(target)


@dataclass(frozen=True)
class ClassLabel(Target):
    """One class an image: integers 0…C−1."""

    def read(self, value: Any, *, who: str, where: str) -> int:
        label = as_label(value)
        if label is None:
            raise TypeError(not_a_label(value, who=who, where=where))
        return label


@dataclass(frozen=True)
class LabelSet(Target):
    """Any number of labels an image: float32 ``[C]`` of 0, 1 and NaN (not known).

    Tensors and arrays are multi-hot, −1 or NaN where nobody knows; lists, tuples and sets hold the indices of the
    labels that apply.

    Args:
        num_classes: C, needed for lists of indices.
    """

    num_classes: int | None = None

    def read(self, value: Any, *, who: str, where: str) -> Tensor:
        if isinstance(value, (list, tuple, set, frozenset)):
            return self._from_indices(list(value), who, where)
        if not isinstance(value, (Tensor, np.ndarray)):
            raise TypeError(
                f"{who}: expected a multi-hot tensor [C] or a list of label indices, got {kind_of(value)} at {where}."
            )
        hot = _numbers(value).to(torch.float32)
        if hot.ndim != 1 or len(hot) == 0 or self.num_classes not in (None, len(hot)):
            wanted = "C" if self.num_classes is None else self.num_classes
            raise ValueError(f"{who}: expected a multi-hot tensor [{wanted}], got {list(hot.shape)} at {where}.")
        hot = hot.where(hot != -1, torch.nan)
        strange = ~(hot.isnan() | (hot == 0) | (hot == 1))
        if strange.any():
            raise ValueError(
                f"{who}: expected 0, 1, or −1 (NaN) for a label that is not known, got {float(hot[strange][0]):g} at "
                f"{where}; a list, not a tensor, holds label indices."
            )
        return hot

    def _from_indices(self, value: list[Any], who: str, where: str) -> Tensor:
        if self.num_classes is None:
            raise TypeError(
                f"{who}: expected the number of labels beside lists of indices, got none; pass "
                "loss=MultiLabel(num_classes=…), or multi-hot tensors."
            )
        hot = torch.zeros(self.num_classes)
        for entry in value:
            label = as_label(entry)
            if label is None:
                raise TypeError(not_a_label(entry, who=who, where=where))
            if not 0 <= label < self.num_classes:
                raise ValueError(f"{who}: expected label indices 0…{self.num_classes - 1}, got {label} at {where}.")
            hot[label] = 1
        return hot


@dataclass(frozen=True)
class Values(Target):
    """Real numbers: one, or a vector of K; float64 ``[K]``."""

    named = False

    def read(self, value: Any, *, who: str, where: str) -> Tensor:
        try:
            numbers = _numbers(value).to(torch.float64)
        except (TypeError, ValueError):
            raise TypeError(f"{who}: expected a number or a vector of numbers, got {value!r:.60} at {where}.") from None
        if numbers.ndim > 1 or numbers.numel() == 0:
            raise ValueError(f"{who}: expected a number or a vector [K], got {list(numbers.shape)} at {where}.")
        if not torch.isfinite(numbers).all():
            raise ValueError(f"{who}: expected finite target values, got {value!r:.60} at {where}; leave it out.")
        return numbers.reshape(-1)


@dataclass(frozen=True)
class Mask(Target):
    """A class for every pixel: integers ``[H, W]`` as large as the image, or its file; int64, −1 where ignored.

    Args:
        ignore_index: The value of pixels that are not part of the task.
    """

    ignore_index: int = 255

    def read(self, value: Any, *, who: str, where: str) -> Tensor:
        if isinstance(value, (str, os.PathLike)):
            with Image.open(value) as image:
                value = np.asarray(image)  # a palette's indices are the classes
        elif isinstance(value, Image.Image):
            value = np.asarray(value)
        if not isinstance(value, (Tensor, np.ndarray)):
            raise TypeError(
                f"{who}: expected a mask [H, W] (tensor, array, PIL, path), got {kind_of(value)} at {where}."
            )
        mask = _numbers(value)
        mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
        if mask.ndim != 2 or mask.numel() == 0:
            raise ValueError(f"{who}: expected a mask [H, W] of class indices, got {list(mask.shape)} at {where}.")
        if mask.is_floating_point() or mask.is_complex():
            raise TypeError(f"{who}: expected a mask of integers, got {mask.dtype} at {where}; convert it.")
        mask = mask.to(torch.int64)
        labelled = mask != self.ignore_index
        if (mask[labelled] < 0).any():
            raise ValueError(
                f"{who}: expected class indices >= 0 or {self.ignore_index} (ignored) in a mask, got {int(mask.min())} "
                f"at {where}; name the value to ignore: loss=Dense(ignore_index=…)."
            )
        return mask.where(labelled, -1)

    def prepare(self, target: Tensor, image: Tensor, preprocess: Preprocess | None) -> Tensor:
        """Return the mask as `preprocess` would see it: the nearest pixel's class, −1 outside the image.

        Args:
            target: ``[H, W]``.
            image: ``[3, H, W]``, before `preprocess`.
            preprocess: Applied to the image, or None.

        Returns:
            ``[crop, crop]`` int64, or `target` without a preprocess.

        Raises:
            ValueError: If mask and image differ in size.
        """
        if target.shape != image.shape[1:]:
            raise ValueError(
                f"Task: expected a mask as large as its image, {list(image.shape[1:])}, got {list(target.shape)}; "
                "apply the same crops, turns (EXIF) and sizes to both."
            )
        return target if preprocess is None else preprocess.mask(target, fill=-1)


@dataclass(frozen=True)
class Unlabelled(Target):
    """Nothing: items are images, or tuples that start with one, whose rest is not looked at."""

    named = False

    def split(self, item: Any, where: str) -> tuple[Any, Any]:
        return (item[0] if isinstance(item, (tuple, list)) and item else item), None

    def read(self, value: Any, *, who: str, where: str) -> int:
        return 0


def kind_of(value: Any) -> str:
    """Return what a message calls a value that is of the wrong type.

    Args:
        value: Any.

    Returns:
        Its type, and its length where it has one.
    """
    length = f" of length {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
    return f"{type(value).__name__}{length}"


def _numbers(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, (str, bytes)) or (isinstance(value, Sequence) and any(isinstance(v, str) for v in value)):
        raise TypeError("text")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(str(array.dtype))
    if array.dtype.kind == "u":
        array = array.astype(np.int64)  # torch knows uint16 and uint32 only in part
    return torch.from_numpy(np.array(array))  # writable, and ours
