"""From an RGB tensor to the probe's input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..words import Decoder

Interpolation = Literal["bilinear", "bicubic"]

_MAX_ASPECT = 100  # longer : shorter side; beyond it the centre crop sees < 1 % of the image


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing that a probe's weights expect: resize, centre crop, normalise.

    The numbers equal those of torchvision's ``ImageClassification`` preset on tensors, which rounds 8-bit images after
    the resize.

    Args:
        resize: Length of the shorter side after the antialiased resize, pixels.
        crop: Side of the centre crop, pixels; a smaller image is padded with black.
        mean: Subtracted from the R, G and B planes, in units of [0, 1].
        std: Divides them afterwards.
        interpolation: Interpolation of the resize.
        decoder: ``"exact"``: images in full size. ``"draft"``: JPEG files at 1/2, 1/4 or 1/8 of their size where that
            is still larger than `resize`: faster, other pixels. Embeddings of the two do not compare.

    Raises:
        ValueError: If a size is not a positive integer, ``mean`` or ``std`` are not three finite numbers (``std``
            positive), or ``interpolation`` or ``decoder`` is unknown.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    decoder: Decoder = "exact"

    def __post_init__(self) -> None:
        """Check the values, and turn lists into tuples."""
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"Preprocess: expected {name} ≥ 1 (whole pixels), got {size!r}; correct it.")
        object.__setattr__(self, "mean", _three("mean", self.mean, "finite", math.isfinite))
        object.__setattr__(self, "std", _three("std", self.std, "positive", lambda v: 0 < v < math.inf))
        for name, known in (("interpolation", get_args(Interpolation)), ("decoder", get_args(Decoder))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Preprocess: expected {name} {' or '.join(known)}, got {getattr(self, name)!r}; choose one."
                )

    def __call__(self, rgb: Tensor) -> Tensor:
        """Return the probe's input for one image: ``[3, crop, crop]`` float32, contiguous; arguments as `cropped`'s."""
        return self.normalised(self.cropped(rgb))

    def cropped(self, rgb: Tensor) -> Tensor:
        """Return an image resized and cropped, ``[3, crop, crop]``, contiguous: uint8 if it is, else float32 in [0, 1].

        Args:
            rgb: ``[3, H, W]``, uint8 or float32 in [0, 1], as `to_rgb` gives it.

        Raises:
            TypeError: If the image is neither uint8 nor float32.
            ValueError: If it is not ``[3, H, W]``, or one side is more than 100 times the other: the resized image
                would take gigabytes, and the crop would show less than 1 % of it.
        """
        if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.numel() == 0:
            raise ValueError(f"Preprocess: expected an image [3, H, W], got {list(rgb.shape)}; pass it through to_rgb.")
        if rgb.dtype not in (torch.uint8, torch.float32):
            raise TypeError(f"Preprocess: expected uint8 or float32, got {rgb.dtype}; pass the image through to_rgb.")
        image = _crop_center(self._resize(rgb.to(torch.float32)), self.crop)
        if rgb.dtype == torch.uint8:  # as torchvision: whole numbers again, without the overshoot of bicubic
            image = image.round().clamp(0, 255).to(torch.uint8)
        return image.contiguous()

    def normalised(self, crops: Tensor) -> Tensor:
        """Return the probe's input for what `cropped` made, ``[…, 3, crop, crop]``: float32 on the crops' device.

        The numbers are the same bits on every device.
        """
        white, mean, std = _constants(self.mean, self.std, crops.device)
        image = crops.to(torch.float32, copy=True)
        if crops.dtype == torch.uint8:
            image = image.div_(white)
        return image.sub_(mean).div_(std)

    def mask(self, mask: Tensor, *, fill: int) -> Tensor:
        """Return a mask resized (nearest pixel) and cropped as its image is: ``[crop, crop]`` of the same dtype.

        Args:
            mask: ``[H, W]`` integers, of an image ``[3, H, W]``.
            fill: The value outside the image.
        """
        size = self._size(*mask.shape)
        nearest = F.interpolate(mask[None, None].double(), size=size, mode="nearest-exact")[0].to(mask.dtype)
        return _crop_center(nearest, self.crop, fill)[0].contiguous()

    def _resize(self, image: Tensor) -> Tensor:
        size = self._size(*image.shape[1:])
        if size == image.shape[1:]:
            return image
        return F.interpolate(image[None], size=size, mode=self.interpolation, align_corners=False, antialias=True)[0]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize."""
        short, long = sorted((height, width))
        if long > _MAX_ASPECT * short:
            raise ValueError(
                f"Preprocess: expected sides of at most 1:{_MAX_ASPECT}, got {width} × {height} pixels; "
                "cut the image first."
            )
        new_long = self.resize * long // short
        return (self.resize, new_long) if height <= width else (new_long, self.resize)

    @classmethod
    def from_torchvision(cls, preset: Any) -> Preprocess:
        """Return the preprocessing of a torchvision classification model, given ``weights.transforms()``.

        Raises:
            TypeError: If it is not such a preset.
            NotImplementedError: If it resizes in a way `Preprocess` does not.
        """
        try:
            resize, crop = list(preset.resize_size), list(preset.crop_size)
            mean, std, mode = preset.mean, preset.std, str(preset.interpolation.value)
        except (AttributeError, TypeError) as error:
            raise TypeError(
                "Preprocess.from_torchvision: expected torchvision's ImageClassification preset, got "
                f"{type(preset).__name__}; pass weights.transforms(), or build a Preprocess(...) by hand."
            ) from error
        square = len(resize) == 1 and len(crop) in (1, 2) and crop[0] == crop[-1]
        if not square or mode not in get_args(Interpolation) or not getattr(preset, "antialias", True):
            raise NotImplementedError(
                "Preprocess.from_torchvision: supported are an antialiased bilinear or bicubic resize of the "
                f"shorter side and a square crop; got {preset}; apply it yourself and pass preprocess=None."
            )
        return cls(int(resize[0]), int(crop[0]), tuple(mean), tuple(std), mode)  # type: ignore[arg-type]

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Preprocess:
        """Return the preprocessing of a timm model, given ``timm.data.resolve_model_data_config(model)``.

        Raises:
            NotImplementedError: If it resizes in a way `Preprocess` does not.
        """
        _, height, width = config["input_size"]
        mode = config["interpolation"]
        if height != width or config["crop_mode"] != "center" or mode not in get_args(Interpolation):
            raise NotImplementedError(
                "Preprocess.from_timm: supported are a bilinear or bicubic resize of the shorter side and a square "
                f"centre crop; got {dict(config)}; build the model with timm.create_model and pass it as a module, "
                "with preprocess=Preprocess(…) or None."
            )
        return cls(math.floor(height / config["crop_pct"]), height, config["mean"], config["std"], mode)

    def with_size(self, crop: int) -> Preprocess:
        """Return this preprocessing with another crop, in pixels, and the same ratio of resize to crop."""
        resize = (2 * self.resize * crop + self.crop) // (2 * self.crop)  # halves are rounded up
        return replace(self, resize=resize, crop=crop)

    def to_dict(self) -> dict[str, Any]:
        """Return the preprocessing as a dictionary that JSON can hold; without `decoder` where that is ``"exact"``."""
        values = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        if self.decoder == "exact":  # as versions before 0.3 wrote it
            del values["decoder"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Return the preprocessing that a dictionary of `to_dict` describes.

        Raises:
            ValueError: If entries are missing or unknown, or a value is impossible.
        """
        expected = cls.__dataclass_fields__.keys()
        if values.keys() | {"decoder"} != expected:
            raise ValueError(
                f"Preprocess.from_dict: expected the entries {sorted(expected)}, got {sorted(values)}; "
                "was it written by another version?"
            )
        return cls(**values)


@lru_cache(maxsize=64)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """255, mean and std on a device: copied there once, and no numbers of Python, by whose inverse CUDA multiplies."""
    white, *rest = torch.tensor(255.0), *(torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    return white.to(device), rest[0].to(device), rest[1].to(device)


def _three(name: str, values: Sequence[float], kind: str, is_kind: Callable[[float], bool]) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3 or not all(map(is_kind, numbers)):
        raise ValueError(f"Preprocess: expected {name} as three {kind} numbers, got {numbers}; correct it.")
    return numbers


def _crop_center(image: Tensor, size: int, fill: int = 0) -> Tensor:
    """The central ``[…, size, size]``, padded where too small; rounds as torchvision does."""
    down, right = (max(size - side, 0) for side in image.shape[1:])
    if down or right:
        image = F.pad(image, (right // 2, (right + 1) // 2, down // 2, (down + 1) // 2), value=fill)
    height, width = image.shape[1:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[:, top : top + size, left : left + size]
