"""The distance matrix, ordered so that near tasks are neighbours, with the tree of that order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure import checked_distances, label_text, legend, looks, needs, new_figure, styled, symmetric, whole_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_MATRIX_INCHES = 6.0  # side of the matrix while its cells are between the next two limits
_SMALLEST_CELL, _LARGEST_CELL = 0.115, 0.6  # inches; the first still holds a name in 6-point type
_SMALLEST_MATRIX = 2.4  # inches
_LARGEST_MATRIX = 24.0  # inches; names that this makes too small to read are left out
_NAMELESS_MATRIX = 9.0  # inches; without names there is no reason for a larger one
_FONT_LIMITS = (5.0, 10.0)  # points
_BAR_HEIGHT = 0.45  # of the matrix
_TREE_INCHES, _STRIP_INCHES, _GAP_INCHES = 0.7, 0.13, 0.04


@styled
def plot_matrix(
    distances: Any,
    names: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    distance: str = "distance",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Return axes with the distance matrix, its tasks in the order of `cluster_order`, and the tree of that order.

    Rows are sources, columns targets; clusters are dark squares on the diagonal. The colours span the distances between
    different tasks. Two branches of the tree meet at the mean distance between their tasks.

    Args:
        distances: ``[T, T]`` tensor or array, any ``distance_matrix``; need not be symmetric.
        names: T names; long ones are shortened, and above about 250 tasks all are left out.
        groups: T group names (say, domains), drawn as a coloured strip with a legend, or None.
        distance: What the distances are called, say ``"d_sym"``.
        title: Title, or None.
        ax: Where to draw; default: a new figure that fits the number of tasks.

    Returns:
        The axes.

    Raises:
        ValueError: If the matrix is not square, empty or not finite, or there are not T names or groups.
        ImportError: If matplotlib or scipy is not installed.
    """
    from matplotlib import colormaps

    matrix = checked_distances("plot_matrix", distances, names=names, groups=groups)
    tree = _linkage(matrix)
    order = _leaves(tree)
    ax = ax or _new_figure(len(matrix)).add_subplot()
    between = matrix[~np.eye(len(matrix), dtype=bool)] if len(matrix) > 1 else matrix
    low, high = float(between.min()), float(between.max())
    # Black below the range, so that the diagonal does not look like the nearest pair. "antialiased" (from
    # matplotlib 3.10 on also called "auto") draws cells of less than three pixels smoothly instead of leaving some out.
    colours = colormaps["viridis"].with_extremes(under="black")
    cells = matrix[np.ix_(order, order)]
    image = ax.imshow(cells, cmap=colours, vmin=low, vmax=high, interpolation="antialiased")
    above = _GAP_INCHES  # inches above the matrix that are used
    if groups is not None:
        _draw_groups(ax, [groups[index] for index in order])
        above += _STRIP_INCHES + _GAP_INCHES
    if tree is not None:
        _draw_tree(ax, tree, above)
        above += _TREE_INCHES
    if title is not None:
        ax.set_title(title, pad=72 * above + 6)
    if not np.array_equal(matrix, matrix.T):
        ax.set(xlabel="target", ylabel="source")
    _draw_colour_bar(ax, image, distance, extend="min" if matrix.min() < low else "neither")
    _write_names(ax, [names[index] for index in order])
    return ax


def cluster_order(distances: Any) -> list[int]:
    """Return an order of the tasks in which near ones are neighbours.

    Args:
        distances: ``[T, T]`` tensor or array; ½(D + Dᵀ) counts, the diagonal does not.

    Returns:
        A permutation of 0 … T−1 from average linkage with optimal leaf ordering; deterministic.

    Raises:
        ImportError: If scipy is not installed.
    """
    return _leaves(_linkage(checked_distances("cluster_order", distances)))


def _linkage(matrix: np.ndarray) -> np.ndarray | None:
    """Return scipy's average linkage ``[T − 1, 4]``, or None for one task."""
    if len(matrix) < 2:
        return None
    with needs("scipy"):
        from scipy.cluster.hierarchy import linkage
    # linkage takes no negative distances; a common shift changes neither the order nor the shape of the tree.
    return linkage(symmetric(matrix)[np.triu_indices(len(matrix), 1)], "average", optimal_ordering=True)


def _leaves(tree: np.ndarray | None) -> list[int]:
    if tree is None:
        return [0]
    from scipy.cluster.hierarchy import leaves_list

    return leaves_list(tree).tolist()


def _new_figure(T: int) -> Figure:
    cell = min(max(_MATRIX_INCHES / T, _SMALLEST_CELL), _LARGEST_CELL, _LARGEST_MATRIX / T)
    side = max(cell * T, _SMALLEST_MATRIX) if 0.75 * 72 * cell >= _FONT_LIMITS[0] else _NAMELESS_MATRIX
    # Room for names, colour bar and legend; save_figure trims what is not used.
    return new_figure(side + 4.5, side + 3.0 + _TREE_INCHES)


def _side(ax: Axes) -> float:
    """Return the side of the square that the matrix fills, in inches."""
    box = ax.get_window_extent()
    return min(box.width, box.height) / whole_figure(ax).dpi


def _write_names(ax: Axes, names: list[str]) -> None:
    """Write the names on both axes in type that fits the cells, or none where it would be too small to read."""
    ax.tick_params(length=0)
    if _type_size(ax, len(names)) >= _FONT_LIMITS[0]:
        ticks, labels = range(len(names)), [label_text(name) for name in names]
        ax.set_xticks(ticks, labels, rotation=90, fontsize=_FONT_LIMITS[0])
        ax.set_yticks(ticks, labels, fontsize=_FONT_LIMITS[0])
        whole_figure(ax).draw_without_rendering()  # names and legend take room from the matrix
    size = _type_size(ax, len(names))
    ax.tick_params(labelsize=min(size, _FONT_LIMITS[1]))
    if size < _FONT_LIMITS[0]:
        ax.set(xticks=[], yticks=[])


def _type_size(ax: Axes, T: int) -> float:
    """Return three quarters of a cell, in points: a line is a third higher than its type size."""
    return 0.75 * 72 * _side(ax) / T


def _draw_groups(ax: Axes, groups: list[str]) -> None:
    """Draw a strip above and right of the matrix, one rectangle for each run of equal groups, and a legend."""
    from matplotlib.patches import Patch, Rectangle

    T, side = len(groups), _side(ax)
    gap, width = _GAP_INCHES / side, _STRIP_INCHES / side
    groups, styles = looks(groups)
    top = ax.inset_axes((0.0, 1 + gap, 1.0, width), label="groups top")
    right = ax.inset_axes((1 + gap, 0.0, width, 1.0), label="groups right")
    top.set(xlim=(-0.5, T - 0.5), ylim=(0, 1))
    right.set(xlim=(0, 1), ylim=(T - 0.5, -0.5))
    for strip in (top, right):
        strip.set_axis_off()
    start, edge = 0, 0.3 if T <= 200 else 0.0  # points; edges of narrow rectangles would hide them
    for group, run in groupby(groups):
        length = len(list(run))
        top.add_patch(Rectangle((start - 0.5, 0), length, 1, **styles[group].filled(edge)))
        right.add_patch(Rectangle((0, start - 0.5), 1, length, **styles[group].filled(edge)))
        start += length
    handles = [Patch(label=label_text(group), **look.filled()) for group, look in styles.items()]
    rows = max(1, int(side * (0.95 - _BAR_HEIGHT) / 0.21))  # a line of 9-point type is 0.21 inches high
    corner = (1 + 0.2 / side, 1 + gap + width)
    legend(ax, handles, loc="upper left", bbox_to_anchor=corner, ncols=-(-len(handles) // rows))


def _draw_tree(ax: Axes, tree: np.ndarray, start: float) -> None:
    """Draw the dendrogram, its foot `start` inches above the matrix."""
    from matplotlib.collections import LineCollection
    from scipy.cluster.hierarchy import dendrogram

    side, T = _side(ax), len(tree) + 1
    drawn = dendrogram(tree, no_plot=True)
    # scipy puts leaves at 5, 15, 25, …; the cells' centres are at 0, 1, 2, …
    branches = np.stack([(np.asarray(drawn["icoord"]) - 5) / 10, np.asarray(drawn["dcoord"])], axis=-1)
    place = ax.inset_axes((0.0, 1 + start / side, 1.0, _TREE_INCHES / side), label="tree")
    place.add_collection(LineCollection(list(branches), colors="0.35", linewidths=min(1.0, 60 / T + 0.3)))
    place.set(xlim=(-0.5, T - 0.5), ylim=(0, max(float(tree[:, 2].max()), 1e-300) * 1.02))
    place.set_axis_off()


def _draw_colour_bar(ax: Axes, image: AxesImage, distance: str, extend: str) -> None:
    """Draw a colour bar at the lower right; the legend is at the upper right."""
    side = _side(ax)
    place = ax.inset_axes((1 + 0.3 / side, 0.0, 0.15 / side, _BAR_HEIGHT), label="colour bar")
    bar = whole_figure(ax).colorbar(image, cax=place, extend=extend)
    bar.set_label(f"{distance} (dark is near)", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)
