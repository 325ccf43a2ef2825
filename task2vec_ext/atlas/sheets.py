"""Contact sheets: six images of a task as one small image."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageOps

from ..data import Task, read_labels, to_rgb

_COLUMNS, _ROWS = 3, 2
_SIDE = 72  # pixels of an image
_QUALITY = 72  # of JPEG: about 8 KB a sheet


def contact_sheet(task: Task) -> str | None:
    """Return six images of a task, of as many classes as possible, as the URL of one small image of 3×2.

    Broken images are passed over; None where no image can be read.
    """
    images: list[Image.Image] = []
    for index in _chosen(task):
        try:
            pixels = to_rgb(task.item(index)[0])
        except (ValueError, TypeError, OSError):  # embedding has warned about it already
            continue
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        images.append(ImageOps.fit(image, (_SIDE, _SIDE), Image.Resampling.LANCZOS))
        if len(images) == _COLUMNS * _ROWS:
            break
    if not images:
        return None
    sheet = Image.new("RGB", (_COLUMNS * _SIDE, -(-len(images) // _COLUMNS) * _SIDE), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % _COLUMNS * _SIDE, number // _COLUMNS * _SIDE))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _chosen(task: Task) -> list[int]:
    """Return images to try, in order: one of each of six classes spread over all, then more of the same in turn."""
    wanted = _COLUMNS * _ROWS
    if task.labels is None:
        return [i * len(task) // wanted for i in range(min(wanted, len(task)))]
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(read_labels(task).tolist()):
        by_class.setdefault(label, []).append(index)
    labels = sorted(by_class)
    spread = [labels[i * len(labels) // min(wanted, len(labels))] for i in range(min(wanted, len(labels)))]
    rounds = max(2, -(-wanted // len(spread))) + 1  # more than wanted, because images may be broken
    return [by_class[label][turn] for turn in range(rounds) for label in spread if turn < len(by_class[label])]
