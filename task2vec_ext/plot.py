"""Pictures of distances between tasks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ._atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Okabe and Ito's colours, told apart with any colour vision; after the eighth group hatches begin.
_GROUP_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
_HATCHES = ("", "///", "...", "xxx")
_FORMATS = ("png", "svg", "pdf")

_MATRIX_INCHES = 6.0  # side of the matrix while its cells stay between the two limits below
_SMALLEST_CELL, _LARGEST_CELL = 0.115, 0.6  # inches; the first still holds a name in 6-point type
_SMALLEST_MATRIX = 2.4  # inches
_LARGEST_MATRIX = 24.0  # inches; where this makes names too small to read, they are left out
_FONT_LIMITS = (5.0, 10.0)  # points
_LONGEST_NAME = 28  # characters
_BAR_HEIGHT = 0.45  # of the matrix


def plot_matrix(
    distances: Any,
    names: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Return axes with the distance matrix, its tasks reordered so that near ones are neighbours.

    The order comes from average linkage of ½(D + Dᵀ) with optimal leaf ordering. Rows are sources, columns
    targets, both in that order, so that clusters are dark squares along the diagonal: dark is near. The
    colours span the distances between different tasks; the zeros of the diagonal would use up half of them.

    Args:
        distances: ``[T, T]`` tensor or array, any ``distance_matrix``; need not be symmetric.
        names: T names; long ones are shortened in the middle, and above about 340 tasks left out.
        groups: T group names (say, domains), drawn as a coloured strip with a legend, or None.
        title: Title, or None.
        ax: Where to draw; by default a new figure that fits the number of tasks.

    Returns:
        The axes; ``ax.figure`` is the figure. No global pyplot state is touched.

    Raises:
        ValueError: The matrix is not square, empty or not finite, or the names or groups are not T.
        ImportError: matplotlib or scipy is not installed.
    """
    matrix = _checked_matrix(distances, names, groups)
    order = cluster_order(matrix)
    if ax is None:
        ax = _new_figure(len(matrix)).add_subplot()
    low, high = _colour_range(matrix)
    image = _draw_cells(ax, matrix[np.ix_(order, order)], low, high)
    if groups is not None:
        _draw_groups(ax, [groups[index] for index in order])
    if title is not None:
        ax.set_title(title, pad=18 if groups is not None else 8)
    if not np.array_equal(matrix, matrix.T):
        ax.set(xlabel="target", ylabel="source")
    _draw_colour_bar(ax, image, extend="min" if matrix.min() < low else "neither")
    _write_names(ax, [names[index] for index in order])
    return ax


def check_installed() -> None:
    """Raise ImportError, with what to install, unless matplotlib and scipy can be found."""
    from importlib.util import find_spec

    for module in ("matplotlib", "scipy"):
        if find_spec(module) is None:
            raise _missing(module)


def cluster_order(distances: Any) -> list[int]:
    """Return the order of tasks in which near ones are neighbours.

    Args:
        distances: ``[T, T]`` tensor or array; ½(D + Dᵀ) counts, the diagonal does not.

    Returns:
        A permutation of 0 … T−1 from average linkage with optimal leaf ordering; deterministic.

    Raises:
        ImportError: scipy is not installed.
    """
    matrix = np.asarray(torch.as_tensor(distances, dtype=torch.float64, device="cpu"))
    T = len(matrix)
    if T < 3:  # nothing to order
        return list(range(T))
    try:
        from scipy.cluster.hierarchy import leaves_list, linkage
    except ImportError as error:
        raise _missing("scipy") from error
    pairs = ((matrix + matrix.T) / 2)[np.triu_indices(T, 1)]
    # d_asym may be negative, which linkage does not expect; a common shift does not change average linkage.
    return [int(leaf) for leaf in leaves_list(linkage(pairs - min(pairs.min(), 0.0), "average", optimal_ordering=True))]


def save_figure(ax: Axes, path: str | os.PathLike[str]) -> None:
    """Write the figure that ``ax`` belongs to, atomically; the same figure gives the same bytes.

    Args:
        ax: Any axes of the figure.
        path: A ``.png``, ``.svg`` or ``.pdf`` file in a folder that exists.

    Raises:
        ValueError: Another suffix.
        OSError: The file could not be written; an older one is untouched.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        raise ValueError(f"save_figure: expected a name that ends in .png, .svg or .pdf, got {path}.")
    import matplotlib

    undated = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "task2vec"}):
        _figure(ax).savefig(temporary, format=suffix, dpi=150, bbox_inches="tight", metadata=undated)


def shorten(name: str, length: int = _LONGEST_NAME) -> str:
    """Return ``name`` with its middle replaced by … where it is longer than ``length`` characters."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"


def _checked_matrix(distances: Any, names: Sequence[str], groups: Sequence[str] | None) -> np.ndarray:
    matrix = np.asarray(torch.as_tensor(distances, dtype=torch.float64, device="cpu").detach())
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"plot_matrix: expected distances of shape [T, T] with T >= 1, got {list(matrix.shape)}.")
    if not np.isfinite(matrix).all():
        raise ValueError("plot_matrix: expected finite distances, got NaN or infinity; leave those tasks out.")
    for word, values in (("names", names), ("groups", groups)):
        if values is not None and len(values) != len(matrix):
            raise ValueError(f"plot_matrix: expected {len(matrix)} {word}, one per task, got {len(values)}.")
    return matrix


def _new_figure(T: int) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _missing("matplotlib") from error
    cell = min(max(_MATRIX_INCHES / T, _SMALLEST_CELL), _LARGEST_CELL, _LARGEST_MATRIX / T)
    side = max(cell * T, _SMALLEST_MATRIX)
    # Names to the left and below, colour bar and legend to the right; save_figure trims what is left over.
    figure = Figure(figsize=(side + 4.5, side + 3.0), layout="constrained")
    FigureCanvasAgg(figure)  # a figure without pyplot has no canvas to save with until it is given one
    return figure


def _missing(module: str) -> ImportError:
    return ImportError(f'plot: expected {module} to be installed; pip install "task2vec_ext[plot]".')


def _colour_range(matrix: np.ndarray) -> tuple[float, float]:
    """Least and largest distance between different tasks."""
    others = matrix[~np.eye(len(matrix), dtype=bool)] if len(matrix) > 1 else matrix
    return float(others.min()), float(others.max())


def _draw_cells(ax: Axes, matrix: np.ndarray, low: float, high: float) -> AxesImage:
    from matplotlib import colormaps

    # Black below the range: the diagonal does not look like the nearest pair.
    colours = colormaps["viridis"].with_extremes(under="black")
    return ax.imshow(matrix, cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def _figure(ax: Axes) -> Figure:
    """The whole figure, also where ``ax`` is in a subfigure (whose ``figure`` it is)."""
    part: Any = ax.figure
    whole: Figure = part.figure
    return whole


def _side(ax: Axes) -> float:
    """Side of the square that the matrix fills, in inches."""
    box = ax.get_window_extent()
    return min(box.width, box.height) / _figure(ax).dpi


def _write_names(ax: Axes, names: list[str]) -> None:
    """Name on both axes in the type size that fits the cells; none where that could not be read."""
    ax.tick_params(length=0)
    if _type_size(ax, len(names)) >= _FONT_LIMITS[0]:
        ticks, labels = range(len(names)), [shorten(name) for name in names]
        ax.set_xticks(ticks, labels, rotation=90, fontsize=_FONT_LIMITS[0])
        ax.set_yticks(ticks, labels, fontsize=_FONT_LIMITS[0])
        _figure(ax).draw_without_rendering()  # only the layout knows what names and legend leave the matrix
    size = _type_size(ax, len(names))
    ax.tick_params(labelsize=min(size, _FONT_LIMITS[1]))
    if size < _FONT_LIMITS[0]:
        ax.set(xticks=[], yticks=[])


def _type_size(ax: Axes, T: int) -> float:
    """Three quarters of a cell, in points: lines of type are a third higher than that."""
    return 0.75 * 72 * _side(ax) / T


def _draw_groups(ax: Axes, groups: list[str]) -> None:
    """A strip along top and right of the matrix, one rectangle a run of equal groups, and a legend."""
    from matplotlib.patches import Patch, Rectangle

    T = len(groups)
    side = _side(ax)
    gap, width = 0.04 / side, 0.13 / side  # 0.04 and 0.13 inches
    distinct = sorted(set(groups))
    styles = {group: _group_style(index) for index, group in enumerate(distinct)}
    top = ax.inset_axes((0.0, 1 + gap, 1.0, width), label="groups top")
    right = ax.inset_axes((1 + gap, 0.0, width, 1.0), label="groups right")
    top.set(xlim=(-0.5, T - 0.5), ylim=(0, 1))
    right.set(xlim=(0, 1), ylim=(T - 0.5, -0.5))
    for strip in (top, right):
        strip.set_axis_off()
    start = 0
    for group, run in groupby(groups):
        length = len(list(run))
        top.add_patch(Rectangle((start - 0.5, 0), length, 1, **styles[group]))
        right.add_patch(Rectangle((0, start - 0.5), 1, length, **styles[group]))
        start += length
    handles = [Patch(label=shorten(group), **styles[group]) for group in distinct]
    rows = max(1, int(side * (0.95 - _BAR_HEIGHT) / 0.21))  # a line of 9-point type is 0.21 inches high
    corner = (1 + 0.2 / side, 1 + gap + width)
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=corner,
        ncols=-(-len(handles) // rows),
        borderaxespad=0.0,
        frameon=False,
        fontsize=9,
    )


def _group_style(index: int) -> dict[str, Any]:
    colours = len(_GROUP_COLOURS)
    return {
        "facecolor": _GROUP_COLOURS[index % colours],
        "hatch": _HATCHES[index // colours % len(_HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.3,
    }


def _draw_colour_bar(ax: Axes, image: AxesImage, extend: str) -> None:
    """A colour bar at the lower right, so that the legend has the upper right for itself."""
    side = _side(ax)
    place = ax.inset_axes((1 + 0.3 / side, 0.0, 0.15 / side, _BAR_HEIGHT), label="colour bar")
    bar = _figure(ax).colorbar(image, cax=place, extend=extend)
    bar.set_label("distance (dark is near)", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)
