"""Targets: what a task's items hold besides the image, and how it is read."""

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

from .labels import checked_label
from .preprocess import Preprocess


class Target(ABC):
    """A kind of target: reads what a data set gives into what batches stack. A loss brings its own."""

    named: ClassVar[bool] = True
    """Whether the data set's class names are the names of the model's outputs."""

    def split(self, item: Any, *, who: str, where: str) -> tuple[Any, Any]:
        """Return the image and the target of an item, both as the data set gives them; arguments as in `read`.

        Raises:
            TypeError: If it is not a pair.
        """
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise TypeError(
                f"{who}: expected pairs of (image, label), got {kind_of(item)} at {where}; give every image its label."
            )
        return item[0], item[1]

    @abstractmethod
    def read(self, value: Any, *, who: str, where: str) -> Any:
        """Return an image's target: an int, or a tensor whose dtype is the same for all images.

        Args:
            value: What the data set gives.
            who: The caller, for messages.
            where: What messages call the image.

        Raises:
            TypeError: If it is of another kind.
            ValueError: If a value is impossible.
        """

    def prepare(self, target: Any, image: Tensor, preprocess: Preprocess | None) -> Tensor:
        """Return the target of the probe's input, as a tensor of the same shape for all images of a task.

        Args:
            target: What `read` returned.
            image: ``[3, H, W]``, before `preprocess`.
            preprocess: Makes the probe's input of the image; None where the image is the input.
        """
        return torch.as_tensor(target)


@dataclass(frozen=True)
class ClassLabel(Target):
    """One class per image: an integer 0…C−1."""

    def read(self, value: Any, *, who: str, where: str) -> int:
        return checked_label(value, who=who, where=where)


@dataclass(frozen=True)
class LabelSet(Target):
    """Any number of labels per image: float32 ``[C]`` of 0, 1 and NaN (unknown).

    Tensors and arrays are multi-hot, with −1 or NaN for unknown labels. Lists, tuples and sets hold the indices of the
    labels that apply.

    Args:
        num_classes: C; needed for indices.
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
                f"{who}: expected 0, 1, or −1 (NaN) for an unknown label, got {float(hot[strange][0]):g} at {where}; "
                "pass label indices as a list, not as a tensor."
            )
        return hot

    def _from_indices(self, value: list[Any], who: str, where: str) -> Tensor:
        if self.num_classes is None:
            raise TypeError(
                f"{who}: expected the number of labels for lists of label indices, got none; pass "
                "loss=MultiLabel(num_classes=…), or multi-hot tensors."
            )
        hot = torch.zeros(self.num_classes)
        for entry in value:
            label = checked_label(entry, who=who, where=where)
            if not 0 <= label < self.num_classes:
                raise ValueError(f"{who}: expected label indices 0…{self.num_classes - 1}, got {label} at {where}.")
            hot[label] = 1
        return hot


@dataclass(frozen=True)
class Values(Target):
    """Real numbers: one per image, or a vector of K; float64 ``[K]``."""

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
    """A class for every pixel: int64 ``[H, W]``, the size of the image, −1 for ignored pixels.

    The data set gives integers ``[H, W]`` (tensor, array or PIL image), or the file that holds them.

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
            got = kind_of(value)
            raise TypeError(f"{who}: expected a mask [H, W] (tensor, array, PIL, path), got {got} at {where}.")
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
        if target.shape != image.shape[1:]:
            raise ValueError(
                f"Task: expected a mask as large as its image, {list(image.shape[1:])}, got {list(target.shape)}; "
                "apply the same crops, turns (EXIF) and sizes to both."
            )
        return target if preprocess is None else preprocess.mask(target, fill=-1)


@dataclass(frozen=True)
class Unlabelled(Target):
    """No target: items are images, or tuples that start with one and whose rest is ignored."""

    named = False

    def split(self, item: Any, *, who: str, where: str) -> tuple[Any, Any]:
        return (item[0] if isinstance(item, (tuple, list)) and item else item), None

    def read(self, value: Any, *, who: str, where: str) -> int:
        return 0


def kind_of(value: Any) -> str:
    """Return what a message calls a value of the wrong type: its type, and its length where it has one."""
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
        array = array.astype(np.int64)  # torch has uint16 and uint32 only in part
    return torch.from_numpy(np.array(array))  # a writable copy
