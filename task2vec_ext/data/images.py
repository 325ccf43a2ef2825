"""Images: whatever they are stored as, one RGB tensor."""

from __future__ import annotations

import errno
import functools
import io
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from .._util.atomic import DISK_FULL

_FLOAT_SLACK = 0.1  # a bicubic resize overshoots [0, 1] by less than this; a normalised image by far more
_MAX_16BIT = 65535


def to_rgb(image: Image.Image | Tensor | np.ndarray[Any, Any], *, max_value: float | None = None) -> Tensor:
    """Return an image as an RGB tensor.

    - PIL images may have any mode. Alpha is dropped without compositing, as in torchvision's default loader: a
      transparent pixel keeps its stored colour. 16-bit modes (``I;16*``, ``I``) are divided by 65535. Mode ``F`` must
      hold values in [0, 1]. EXIF orientation is applied, and ignored where the EXIF data are damaged. An animation
      gives its first frame. ICC profiles are ignored.
    - Tensors are ``[H, W]`` or ``[C, H, W]``; arrays are ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``; C is 1, 3 or 4
      (the fourth channel is dropped). bool and uint8 are 8-bit, all other integers 16-bit (0…65535). Floats are in
      [0, 1]; an overshoot of up to 0.1, as a resize leaves it, is clamped.

    Args:
        image: The image.
        max_value: The pixel value of white, by which pixels are divided, such as 4095 for 12 bits in 16-bit files.
            Default: 255 for 8-bit images, 65535 for other integers, 1 for floats.

    Returns:
        ``[3, H, W]`` on the CPU, in any memory layout: uint8 for 8-bit sources, otherwise float32 in [0, 1].

    Raises:
        TypeError: If it is not an image, or its pixels are neither bool, integer nor float.
        ValueError: If it has no pixels, a wrong shape, or values that are not finite or out of range.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image, max_value)
    if isinstance(image, np.ndarray):
        return _from_planes(_array_to_tensor(image), max_value)
    if isinstance(image, Tensor):
        return _from_planes(image.detach().cpu(), max_value)
    raise TypeError(
        f"to_rgb: expected a PIL image, a tensor or an array, got {type(image).__name__}; "
        "make the data set return one of these as its image."
    )


def load_image(path: str | os.PathLike[str], *, max_value: float | None = None, at_least: int | None = None) -> Tensor:
    """Return the image in a file, in any format that PIL reads, as `to_rgb` does.

    Where simplejpeg is installed (the extra ``fast``), it decodes JPEG files, to the same pixels.

    Args:
        path: The file.
        max_value: See `to_rgb`.
        at_least: Decode a JPEG file at 1/2, 1/4 or 1/8 of its size where both sides keep so many pixels: faster, other
            pixels.

    Raises:
        ValueError: If the file does not exist or cannot be decoded in full. The message has the path and the reason.
        MemoryError: If memory is lacking.
        OSError: If the process has no file handles left.
    """
    where = os.fspath(path)
    # Checked first, because opening a named pipe would wait for ever.
    if not os.path.isfile(where):
        got = "a link that leads to no file" if os.path.islink(where) else "no file"
        got = "a directory" if os.path.isdir(where) else got
        raise ValueError(f"load_image: expected an image at {where}, got {got}; correct the path.")
    try:
        with Image.open(where) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # does nothing to other formats
            elif (pixels := _fast_pixels(image)) is not None:
                return _from_planes(pixels, max_value)
            return to_rgb(image, max_value=max_value)
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, … on damaged files
        if is_machines_fault(error):
            raise
        advice = "replace or remove the file"
        if os.path.getsize(where) == 0:
            got = "an empty file (zero bytes)"
        elif isinstance(error, UnidentifiedImageError):
            got = "a file in no image format that PIL knows"
        elif isinstance(error, Image.DecompressionBombError):
            got = f"DecompressionBombError: {error}".rstrip(". ")
            advice = "shrink it, or allow more in Python: PIL.Image.MAX_IMAGE_PIXELS = 2 * (number of pixels)"
        else:
            got = f"{type(error).__name__}: {error}".rstrip(". ")
        raise ValueError(f"load_image: expected a readable image at {where}, got {got}; {advice}.") from error


def is_machines_fault(error: BaseException | None) -> bool:
    """Return whether memory, file handles or a disk ran out, here or in a cause of the error: no fault of the image."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            return True
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE, *DISK_FULL):
            return True
        error = error.__cause__
    return False


def _fast_pixels(image: Image.Image) -> Tensor | None:
    """The pixels ``[3, H, W]`` of an opened JPEG file by a decoder that is faster than PIL's, or None: PIL decides."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or _orientation(image) != 1:
        return None
    if (decode := jpeg_decoder()) is None or not isinstance(image, ImageFile.ImageFile) or image.fp is None:
        return None
    image.fp.seek(0)
    try:
        return torch.from_numpy(decode(image.fp.read())).permute(2, 0, 1)
    except ValueError:  # anything unusual, which PIL can read or has an error for
        return None


@functools.cache
def jpeg_decoder() -> Callable[[bytes], np.ndarray[Any, Any]] | None:
    """Return simplejpeg's decoder of a file's content to ``[H, W, 3]``, or None if it is missing or differs from PIL's.

    Both are libjpeg-turbo as a rule, and then agree to the bit. PIL may be built with another library.
    """
    try:
        import simplejpeg
    except ImportError:
        return None
    decode = functools.partial(simplejpeg.decode_jpeg, colorspace="RGB", fastdct=False, fastupsample=False)
    noise = np.random.default_rng(0).integers(0, 256, (37, 43, 3), dtype=np.uint8)
    for subsampling in (0, 1, 2):  # 4:4:4, 4:2:2 and 4:2:0
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", quality=80, subsampling=subsampling)
        with Image.open(file) as image:
            if not np.array_equal(decode(file.getvalue()), np.asarray(image)):
                return None
    return decode


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data do not make the pixels unusable
        return 1


def _from_pil(image: Image.Image, max_value: float | None) -> Tensor:
    if image.width == 0 or image.height == 0:
        raise ValueError(f"to_rgb: expected an image with pixels, got {image.width} × {image.height}; remove it.")
    image.load()  # before its orientation is read: PNG may store EXIF behind the pixels, TIFF is turned while loading
    orientation = _orientation(image)
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    image = image if deep else _to_rgb_mode(image)
    if orientation != 1:
        # `exif_transpose` rewrites the EXIF data, which fails on damaged entries: it gets the orientation alone.
        image = image.copy()
        image.info = {}
        image.getexif()[ExifTags.Base.Orientation] = orientation
        image = ImageOps.exif_transpose(image)
    planes = _array_to_tensor(np.asarray(image))
    if image.mode == "I" and max_value is None:
        max_value = _MAX_16BIT  # PIL's 32 bits hold 16, however dark
    return _from_planes(planes, max_value)


def _to_rgb_mode(image: Image.Image) -> Image.Image:
    """An 8-bit PIL image in mode RGB."""
    if image.mode in ("La", "RGBa"):  # premultiplied alpha: divide by it before it is dropped
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # converting straight to RGB warns, and gives the same colours
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"to_rgb: expected a PIL image that converts to RGB, got mode {image.mode}; convert it first."
        ) from error


def _array_to_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor of its own memory; ``[H, W, C]`` becomes ``[C, H, W]``."""
    if array.dtype.kind not in "buif":
        raise TypeError(f"to_rgb: expected bool, integer or float pixels, got {array.dtype}; convert the array first.")
    # torch has neither foreign byte orders nor long doubles.
    dtype = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    tensor = torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    # Channels last is numpy's custom, and wins where either end could be the channels.
    return tensor.permute(2, 0, 1) if tensor.ndim == 3 and tensor.shape[2] in (1, 3, 4) else tensor


def _from_planes(planes: Tensor, max_value: float | None) -> Tensor:
    if planes.ndim == 2:
        planes = planes[None]
    if planes.ndim != 3 or planes.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"to_rgb: expected an image [H, W] or [C, H, W] with C = 1, 3 or 4, got {list(planes.shape)}; "
            "permute or select its channels."
        )
    if planes.numel() == 0:
        raise ValueError(f"to_rgb: expected an image with pixels, got {list(planes.shape)}; remove it.")
    if planes.is_complex():
        raise TypeError(f"to_rgb: expected bool, integer or float pixels, got {planes.dtype}; convert it first.")
    planes = planes[:3]
    if planes.dtype == torch.bool:
        planes = planes.to(torch.uint8) * 255
    elif planes.is_floating_point():
        planes = _from_float(planes, max_value)
    elif planes.dtype != torch.uint8 or max_value not in (None, 255):
        planes = _from_integers(planes, max_value)
    # Colour stays as it lies in memory: the resize takes any layout, and reordering costs as much as decoding.
    return planes if planes.shape[0] == 3 else planes.expand(3, -1, -1).contiguous()


def _from_integers(planes: Tensor, max_value: float | None) -> Tensor:
    values = planes.to(torch.int64)  # torch has no minimum for its unsigned types
    low, high = (int(v) for v in values.aminmax())
    white = _MAX_16BIT if max_value is None else max_value
    if max_value is None and planes.dtype != torch.uint16 and 0 < high <= 255:  # read as 16-bit, nearly black
        raise ValueError(
            f"to_rgb: expected {planes.dtype} pixels in 0…65535, got a highest value of {high}, which "
            "looks 8-bit; convert the image to uint8 (or to uint16 if it is a dark 16-bit image)."
        )
    if planes.dtype == torch.uint8 and white > 255:
        raise ValueError(
            f"to_rgb: expected pixels of more than 8 bits with max_value={white:g}, got 8 bits; leave max_value out, "
            "or convert the image (PIL reads only 8 bits of 16-bit colour files)."
        )
    if low < 0 or high > white:
        raise ValueError(
            f"to_rgb: expected {'16-bit ' * (max_value is None)}pixels in 0…{white:g}, got values from {low} to "
            f"{high}; name the value of white, max_value, or scale them to floats in [0, 1] first."
        )
    return values.to(torch.float32) / white


def _from_float(planes: Tensor, max_value: float | None) -> Tensor:
    low, high = (float(v) for v in planes.aminmax())  # NaN comes through
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("to_rgb: expected finite pixels, got NaN or infinity; correct or remove the image.")
    white = 1.0 if max_value is None else max_value
    if low < -_FLOAT_SLACK * white or high > (1 + _FLOAT_SLACK) * white:
        advice = "it looks already normalised: pass preprocess=None."
        if low >= 0:
            advice = "divide by the highest possible value (255 for 8 bits), or name it: max_value."
        raise ValueError(
            f"to_rgb: expected float pixels in [0, {white:g}], got values from {low:.3g} to {high:.3g}; {advice}"
        )
    return (planes if max_value is None else planes / white).to(torch.float32).clamp(0, 1)
