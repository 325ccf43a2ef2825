"""Names beside points, as many as fit without overlap, placed greedily.

Libraries that push labels apart (adjustText) keep all of them and take minutes; 1,500 names cover the whole plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure import label_text, whole_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DIRECTIONS = np.array([(1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)], float)
_REACHES = (6.0, 14.0, 26.0)  # points from the task to its name; at the second and third a line joins them
_POINT_RADIUS = 3.0  # points
_PADDING = 1.0  # points around a name
_FEW = 30  # up to so many tasks leave room for larger type


def spread_order(places: np.ndarray) -> list[int]:
    """Return an order of the places ``[T, 2]`` in which each is the farthest from all before it.

    The first few, however many, are therefore spread over the whole.
    """
    left = np.linalg.norm(places - places.mean(0), axis=1)
    order = []
    for _ in range(len(places)):
        order.append(int(left.argmax()))
        left = np.minimum(left, np.linalg.norm(places - places[order[-1]], axis=1))
        left[order] = -1.0
    return order


def write_names(ax: Axes, places: np.ndarray, names: Sequence[str], *, lines: np.ndarray | None = None) -> None:
    """Write as many of T names beside their `places` ``[T, 2]`` as fit without covering points, lines or each other.

    Limits and size of the axes must no longer change. The lines ``[N, 2, 2]`` (from, to) are horizontal or vertical.
    """
    figure = whole_figure(ax)
    figure.draw_without_rendering()  # places the axes
    scale = figure.dpi / 72
    points = ax.transData.transform(places)  # pixels
    frame = ax.get_window_extent()
    radius, padding = (_POINT_RADIUS + _PADDING) * scale, _PADDING * scale
    taken = np.concatenate([points - radius, points + radius], axis=1)  # [M, 4]: left, bottom, right, top
    if lines is not None:
        ends = ax.transData.transform(lines.reshape(-1, 2)).reshape(-1, 2, 2)
        taken = np.concatenate([taken, np.concatenate([ends.min(1) - padding, ends.max(1) + padding], axis=1)])
    size = 9 if len(names) <= _FEW else 7
    style: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "color": "0.15", "zorder": 4}
    arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
    for index in spread_order(points):
        note = ax.annotate(label_text(names[index]), places[index], (0, 0), fontsize=size, arrowprops=arrow, **style)
        extent = np.array(note.get_window_extent().size)
        others = np.delete(taken, index, axis=0)  # a name may come near to its own point
        for reach, direction in product(_REACHES, _DIRECTIONS):  # the nearest first
            corner = points[index] + direction * (reach * scale + extent / 2) - extent / 2
            box = np.concatenate([corner - padding, corner + extent + padding])
            inside = (box[:2] >= (frame.x0, frame.y0)).all() and (box[2:] <= (frame.x1, frame.y1)).all()
            line = _beads(points[index], box) if reach > _REACHES[0] else box[None]
            if inside and not _overlap(box[None], others) and not _overlap(line, others):
                note.set_position(tuple((corner - points[index]) / scale))
                if reach == _REACHES[0] and note.arrow_patch is not None:
                    note.arrow_patch.set_visible(False)
                taken = np.concatenate([taken, box[None], line])
                break
        else:
            note.remove()


def _beads(point: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return small boxes ``[24, 4]`` that cover the line from a point to the middle of a box."""
    middle = (box[:2] + box[2:]) / 2
    centres = point + np.linspace(0.1, 1.0, 24)[:, None] * (middle - point)
    return np.concatenate([centres - 2, centres + 2], axis=1)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> bool:
    """Return whether any of the boxes ``[N, 4]`` overlaps any of the others ``[M, 4]``."""
    a, b = boxes[:, None], others
    apart = (b[..., 0] >= a[..., 2]) | (b[..., 2] <= a[..., 0]) | (b[..., 1] >= a[..., 3]) | (b[..., 3] <= a[..., 1])
    return bool((~apart).any())
