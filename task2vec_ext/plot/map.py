"""Tasks as points in the plane, near tasks together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._util.words import check_word
from .figure import checked_distances, label_text, legend, looks, needs, new_figure, styled, symmetric
from .labels import write_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MapMethod = Literal["tsne", "umap"]

_FEWEST = 8
"""Fewer tasks have no neighbourhoods for t-SNE and UMAP to keep; classical scaling draws the distances themselves."""
_PERPLEXITY = 15.0
"""Effective number of neighbours in t-SNE. Families of tasks are small: at a hundred tasks the usual 30 merges them."""
_RIM = 0.12  # margin around the map, in radii, for the names of the outer tasks
_MOST_ROWS = 36  # of a column of the legend


def map_positions(distances: Any, method: MapMethod = "tsne", *, seed: int = 0) -> np.ndarray:
    """Return a place in the plane for each task, near tasks together.

    Args:
        distances: ``[T, T]`` tensor or array; ½(D + Dᵀ) counts.
        method: Either t-SNE or UMAP (extra ``umap``). Both start from classical scaling, which keeps the layout of
            the whole; fewer than 8 tasks stay as classical scaling places them.
        seed: Seed of the method.

    Returns:
        ``[T, 2]`` float64, centred; the farthest task is at distance 1. Only neighbourhoods mean something; axes and
        scale do not.

    Raises:
        ValueError: If the matrix is not square, empty or not finite, or the method is unknown.
        ImportError: If scikit-learn or umap-learn is not installed.

    Note:
        Same input, same bits, on one machine with one version of the library.
    """
    matrix = symmetric(checked_distances("map_positions", distances))
    check_word("map_positions", "method", method, MapMethod)
    places = _classical_scaling(matrix)
    if len(matrix) >= _FEWEST:
        places = {"tsne": _tsne, "umap": _umap}[method](matrix, places, seed)
    places = _turned(places - places.mean(0))
    farthest = np.linalg.norm(places, axis=1).max()
    return places / farthest if farthest > 0 else places


@styled
def plot_map(
    distances: Any,
    names: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    method: MapMethod = "tsne",
    seed: int = 0,
    distance: str = "the distances",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Return axes with the tasks as points in the plane, near tasks together.

    Args:
        distances: ``[T, T]`` tensor or array, any ``distance_matrix``.
        names: T names, written where there is room.
        groups: T group names (say, domains), drawn as colours and markers with a legend, or None.
        method: As for `map_positions`.
        seed: As for `map_positions`.
        distance: What the distances are called, say ``"d_sym"``.
        title: Title, or None.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes, with one collection of points a group.

    Raises:
        ValueError: If the matrix is not square, empty or not finite, the method is unknown, or there are not T names or
            groups.
        ImportError: If matplotlib, scikit-learn or umap-learn is not installed.
    """
    matrix = checked_distances("plot_map", distances, names=names, groups=groups)
    places = map_positions(matrix, method, seed=seed)
    ax = ax or new_figure(12.5 if groups is not None else 10.0, 7.5).add_subplot()
    middle = (places.max(0) + places.min(0)) / 2
    reach = np.maximum(np.ptp(places, axis=0) / 2, 0.25) + _RIM
    low, high = middle - reach, middle + reach
    ax.set(aspect="equal", xticks=[], yticks=[], xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    for spine in ax.spines.values():
        spine.set_color("0.8")
    how = {"tsne": "t-SNE", "umap": "UMAP"}[method] if len(names) >= _FEWEST else "classical scaling"
    ax.set_xlabel(f"{how} of {distance}: near is alike, axes mean nothing", fontsize=8, color="0.4")
    draw_points(ax, places, groups)
    if title is not None:
        ax.set_title(title)
    write_names(ax, places, names)
    return ax


def draw_points(ax: Axes, places: np.ndarray, groups: Sequence[str] | None) -> None:
    """Draw the places ``[T, 2]`` as points in the looks of their T groups, with a legend beside the axes."""
    size = float(np.clip(12000 / len(places), 14, 60))  # points²
    if groups is None:
        ax.scatter(places[:, 0], places[:, 1], s=size, color="#0072B2", edgecolors="white", linewidths=0.4, zorder=3)
        return
    drawn, styles = looks(groups)
    handles = []
    for group, look in styles.items():
        x, y = places[[name == group for name in drawn]].T
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "edgecolors": "0.25", "linewidths": 0.4}
        handles.append(ax.scatter(x, y, s=size, zorder=3, label=label_text(group), **style))
    legend(ax, handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), ncols=-(-len(handles) // _MOST_ROWS))


def _classical_scaling(matrix: np.ndarray) -> np.ndarray:
    """Return Torgerson's embedding of the distances in the plane, ``[T, 2]``, with fixed signs."""
    T = len(matrix)
    centring = np.eye(T) - 1 / T
    values, vectors = np.linalg.eigh(-0.5 * centring @ matrix**2 @ centring)
    places = np.zeros((T, 2))
    for axis, which in enumerate(np.argsort(values)[::-1][:2]):
        vector = vectors[:, which] * np.sign(vectors[np.abs(vectors[:, which]).argmax(), which])
        places[:, axis] = vector * np.sqrt(max(values[which], 0.0))
    return places


def _turned(places: np.ndarray) -> np.ndarray:
    """Return centred places turned to be longest along the first axis, because screens are wide."""
    axes = np.linalg.svd(places)[2]
    return places @ axes.T * np.where(axes[[0, 1], np.abs(axes).argmax(1)] < 0, -1, 1)


def _tsne(matrix: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    with needs("scikit-learn"):
        from sklearn.manifold import TSNE
    perplexity = min(_PERPLEXITY, (len(matrix) - 1) / 3)
    small = start / max(start[:, 0].std(), 1e-12) * 1e-4  # as scikit-learn scales its own start
    found = TSNE(metric="precomputed", init=small, perplexity=perplexity, random_state=seed).fit_transform(matrix)
    return np.asarray(found, np.float64)


def _umap(matrix: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    with needs("umap-learn", "umap"):
        import umap
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="umap")  # on the inverse transform and on threads, which we do not use
        neighbours, start = min(15, len(matrix) - 1), 10 * start / max(np.abs(start).max(), 1e-12)
        reducer = umap.UMAP(metric="precomputed", n_neighbors=neighbours, init=start, random_state=seed)
        return np.asarray(reducer.fit_transform(matrix), np.float64)
