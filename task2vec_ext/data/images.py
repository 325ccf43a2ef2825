"""Images: any image becomes one RGB tensor."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_ORIENTATION_TAG = 0x0112  # EXIF "Orientation", 1…8; 1 = as stored
# Orientation -> (swap rows and columns first?, then flip these dimensions of [3, H, W]).
_ORIENTATIONS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}
_FLOAT_SLACK = 0.1  # a bicubic resize overshoots [0, 1] by less than this; a normalised image by far more
_MAX_16BIT = 65535


def to_rgb(image: Image.Image | Tensor | np.ndarray[Any, Any]) -> Tensor:
    """Return the image as an RGB tensor, whatever it was stored as.

    - PIL images of every mode. Alpha is dropped, not composited, as torchvision's default loader does (a
      transparent pixel keeps the colour stored under it). 16-bit modes (``I;16*`` and ``I``) are divided by
      65535, never clipped as PIL's own conversion does. ``F`` must hold values in [0, 1]. EXIF orientation is
      applied; a damaged EXIF block counts as none. Of an animation the first frame is taken. ICC profiles
      are ignored.
    - Tensors ``[H, W]`` or ``[C, H, W]`` and arrays ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` with C = 1, 3
      or 4 (the fourth channel is dropped). bool and uint8 are 8-bit; every other integer type is 16-bit
      (0…65535); floats are in [0, 1], and the overshoot of a resize (up to 0.1) is clamped.

    Args:
        image: The image.

    Returns:
        ``[3, H, W]`` on the CPU: uint8 for 8-bit sources, else float32 in [0, 1].

    Raises:
        TypeError: If it is not an image, or has a type no image has (complex, object).
        ValueError: If it has no pixels, the wrong shape, or values that are not finite or out of range.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        return _from_planes(_array_to_tensor(image))
    if isinstance(image, Tensor):
        return _from_planes(image.detach().cpu())
    raise TypeError(
        f"to_rgb: expected a PIL image, a tensor or an array, got {type(image).__name__}; "
        "make the data set return one of these as its image."
    )


def load_image(path: str | os.PathLike[str]) -> Tensor:
    """Return the image in a file as an RGB tensor, decoded to the last byte.

    Args:
        path: The image's file, in any format PIL reads.

    Returns:
        ``[3, H, W]``: uint8, or float32 in [0, 1] for 16-bit and float files (see `to_rgb`).

    Raises:
        ValueError: If there is no such file or it cannot be read in full; names the path and the reason.
    """
    where = os.fspath(path)
    # Asked first, because opening a named pipe would wait for ever.
    if not os.path.isfile(where):
        links = "a link that leads to no file" if os.path.islink(where) else "no file"
        got = "a directory" if os.path.isdir(where) else links
        raise ValueError(f"load_image: expected an image at {where}, got {got}; correct the path.")
    try:
        with Image.open(where) as image:
            return to_rgb(image)
    except MemoryError:  # the machine's fault, not the image's
        raise
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, … on damaged files
        raise ValueError(
            f"load_image: expected a readable image at {where}, got {_reason(where, error)}; mend or remove the file."
        ) from error


def _reason(path: str, error: Exception) -> str:
    if os.path.getsize(path) == 0:
        return "an empty file (zero bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "a file in no image format that PIL knows"
    return f"{type(error).__name__}: {error}".rstrip(". ")


def _from_pil(image: Image.Image) -> Tensor:
    if image.width == 0 or image.height == 0:
        raise ValueError(f"to_rgb: expected an image with pixels, got {image.width} × {image.height}; remove it.")
    if image.mode == "I" or image.mode.startswith("I;16"):
        rgb = _three_planes(_from_16bit(_array_to_tensor(np.asarray(image))[None]))
    elif image.mode == "F":
        rgb = _three_planes(_from_float(_array_to_tensor(np.asarray(image))[None]))
    else:
        rgb = _array_to_tensor(np.asarray(_to_rgb_mode(image)))
    # Asked after the pixels: PNG may store EXIF behind them, and reading a TIFF already turns it upright.
    return _upright(rgb, _orientation(image)).contiguous()


def _to_rgb_mode(image: Image.Image) -> Image.Image:
    """An 8-bit PIL image in mode RGB."""
    if image.mode in ("La", "RGBa"):  # premultiplied alpha: divide by it before it is dropped
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct way warns, and gives the same colours
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"to_rgb: expected a PIL image that converts to RGB, got mode {image.mode}; convert it first."
        ) from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block must not cost an image whose pixels are fine
        return 1


def _upright(rgb: Tensor, orientation: int) -> Tensor:
    swap, flips = _ORIENTATIONS.get(orientation, (False, ()))
    if swap:
        rgb = rgb.transpose(1, 2)
    return rgb.flip(flips) if flips else rgb


def _array_to_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor of its own memory; ``[H, W, C]`` becomes ``[C, H, W]``."""
    if array.dtype.kind not in "buif":
        raise TypeError(f"to_rgb: expected bool, integer or float pixels, got {array.dtype}; convert the array first.")
    # torch knows neither foreign byte orders nor long doubles.
    dtype = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    tensor = torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    # Channels last is numpy's custom and wins where both ends could be channels.
    return tensor.permute(2, 0, 1) if tensor.ndim == 3 and tensor.shape[2] in (1, 3, 4) else tensor


def _from_planes(planes: Tensor) -> Tensor:
    if planes.ndim == 2:
        planes = planes[None]
    if planes.ndim != 3 or planes.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"to_rgb: expected an image [H, W] or [C, H, W] with C = 1, 3 or 4, got {list(planes.shape)}; "
            "permute or select its channels."
        )
    if planes.numel() == 0:
        raise ValueError(f"to_rgb: expected an image with pixels, got {list(planes.shape)}; remove it.")
    planes = planes[:3]
    if planes.is_complex():
        raise TypeError(
            f"to_rgb: expected bool, integer or float pixels, got {planes.dtype}; convert the tensor first."
        )
    if planes.dtype == torch.bool:
        planes = planes.to(torch.uint8) * 255
    elif planes.is_floating_point():
        planes = _from_float(planes)
    elif planes.dtype != torch.uint8:
        _check_not_8bit(planes)
        planes = _from_16bit(planes)
    return _three_planes(planes)


def _three_planes(planes: Tensor) -> Tensor:
    return planes.expand(3, -1, -1).contiguous()  # grey is repeated, colour only passes


def _check_not_8bit(planes: Tensor) -> None:
    """Refuse wide integers that hold 8-bit values: as 16-bit they would be nearly black."""
    if planes.dtype == torch.uint16:  # says what it means, however dark
        return
    highest = int(planes.to(torch.int64).max())
    if 0 < highest <= 255:
        raise ValueError(
            f"to_rgb: expected {planes.dtype} pixels in 0…65535, got a highest value of {highest}, which "
            "looks 8-bit; convert the image to uint8 (or to uint16 if it is a dark 16-bit image)."
        )


def _from_16bit(planes: Tensor) -> Tensor:
    values = planes.to(torch.int64)  # torch has no minimum for its unsigned types
    low, high = (int(v) for v in values.aminmax())
    if low < 0 or high > _MAX_16BIT:
        raise ValueError(
            f"to_rgb: expected 16-bit pixels in 0…{_MAX_16BIT}, got values from {low} to {high}; "
            "scale them to floats in [0, 1] first."
        )
    return values.to(torch.float32) / _MAX_16BIT


def _from_float(planes: Tensor) -> Tensor:
    low, high = (float(v) for v in planes.aminmax())  # NaN comes through
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("to_rgb: expected finite pixels, got NaN or infinity; mend or remove the image.")
    if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
        if low >= 0:
            advice = "divide by the highest possible value (255 for 8 bits), or convert it to uint8."
        else:
            advice = "it looks already normalised: pass preprocess=None."
        raise ValueError(f"to_rgb: expected float pixels in [0, 1], got values from {low:.3g} to {high:.3g}; {advice}")
    return planes.to(torch.float32).clamp(0, 1)
