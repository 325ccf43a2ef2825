"""Tasks as points in the plane: near ones together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ._figure import checked_distances, legend, looks, missing, new_figure, printable, styled, symmetric
from ._labels import write_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MapMethod = Literal["tsne", "umap"]

_FEWEST = 8
"""With fewer tasks t-SNE and UMAP have no neighbourhoods to keep; classical scaling draws the distances themselves."""
_PERPLEXITY = 15.0
"""Neighbours that t-SNE looks at: families of tasks are small. The usual 30 melts them at a hundred tasks."""
_RIM = 0.12  # around the map, of its radius: names of outer tasks stand there
_MOST_ROWS = 36  # of the legend, before it gets a second column


def map_positions(distances: Any, method: MapMethod = "tsne", *, seed: int = 0) -> np.ndarray:
    """Return a place in the plane for each task, near tasks together.

    Args:
        distances: ``[T, T]`` tensor or array; ½(D + Dᵀ) counts.
        method: T-SNE, or UMAP (extra ``umap``), of the distances as they are. Both start from classical scaling, so
            that the map at large means something, too; fewer than 8 tasks stay where that puts them.
        seed: Of the method's random numbers.

    Returns:
        ``[T, 2]`` float64, centred; the farthest is at distance 1. Only who is near whom means something.

    Raises:
        ValueError: If the matrix is not square, empty or not finite, or the method is unknown.
        ImportError: If scikit-learn or umap-learn is not installed.

    Note:
        Same input, same bits, on one machine and version of the library.
    """
    matrix = symmetric(checked_distances("map_positions", distances))
    if method not in ("tsne", "umap"):
        raise ValueError(f"map_positions: expected method to be tsne or umap, got {method!r}.")
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
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Return axes with the tasks as points in the plane, near ones together.

    Args:
        distances: ``[T, T]`` tensor or array, any ``distance_matrix``.
        names: T names; written where there is room, those of lone tasks first.
        groups: T group names (say, domains): colours and markers with a legend; or None.
        method: See `map_positions`.
        seed: See `map_positions`.
        title: Title, or None.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes; a collection of points for each group.

    Raises:
        ValueError: As `map_positions`, or names or groups are not T.
        ImportError: If matplotlib, scikit-learn or umap-learn is not installed.
    """
    matrix = checked_distances("plot_map", distances, names=names, groups=groups)
    places = map_positions(matrix, method, seed=seed)
    T = len(places)
    if ax is None:
        ax = new_figure(12.5 if groups is not None else 10.0, 7.5).add_subplot()
    middle = (places.max(0) + places.min(0)) / 2
    reach = np.maximum(np.ptp(places, axis=0) / 2, 0.25) + _RIM
    low, high = middle - reach, middle + reach
    ax.set(aspect="equal", xticks=[], yticks=[], xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    for spine in ax.spines.values():
        spine.set_color("0.8")
    how = {"tsne": "t-SNE", "umap": "UMAP"}[method] if T >= _FEWEST else "classical scaling"
    ax.set_xlabel(f"{how} of the distances: near is alike, axes mean nothing", fontsize=8, color="0.4")
    draw_points(ax, places, groups)
    if title is not None:
        ax.set_title(title)
    write_names(ax, places, names)
    return ax


def draw_points(ax: Axes, places: np.ndarray, groups: Sequence[str] | None) -> None:
    """Draw a point for each task, in the look of its group, with a legend beside the axes.

    Args:
        ax: Where.
        places: ``[T, 2]``.
        groups: T, or None.
    """
    size = float(np.clip(12000 / len(places), 14, 60))  # points²
    if groups is None:
        ax.scatter(places[:, 0], places[:, 1], s=size, color="#0072B2", edgecolors="white", linewidths=0.4, zorder=3)
        return
    shown, styles = looks(groups)
    handles = []
    for group, look in styles.items():
        own = places[[name == group for name in shown]]
        handles.append(
            ax.scatter(
                own[:, 0],
                own[:, 1],
                s=size,
                color=look.colour,
                marker=look.marker,
                edgecolors="0.25",
                linewidths=0.4,
                zorder=3,
                label=printable(group),
            )
        )
    legend(ax, handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), ncols=-(-len(handles) // _MOST_ROWS))


def _classical_scaling(matrix: np.ndarray) -> np.ndarray:
    """The plane in which the distances are kept best (Torgerson), ``[T, 2]``; signs are fixed."""
    T = len(matrix)
    centring = np.eye(T) - 1 / T
    values, vectors = np.linalg.eigh(-0.5 * centring @ matrix**2 @ centring)
    places = np.zeros((T, 2))
    for axis, which in enumerate(np.argsort(values)[::-1][:2]):
        vector = vectors[:, which] * np.sign(vectors[np.abs(vectors[:, which]).argmax(), which])
        places[:, axis] = vector * np.sqrt(max(values[which], 0.0))
    return places


def _turned(places: np.ndarray) -> np.ndarray:
    """Centred places, turned so that they reach farthest along the first axis: screens are wide."""
    axes = np.linalg.svd(places)[2]
    return places @ axes.T * np.where(axes[[0, 1], np.abs(axes).argmax(1)] < 0, -1, 1)


def _tsne(matrix: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise missing("scikit-learn") from error
    perplexity = min(_PERPLEXITY, (len(matrix) - 1) / 3)
    small = start / max(start[:, 0].std(), 1e-12) * 1e-4  # as scikit-learn scales its own start
    found = TSNE(metric="precomputed", init=small, perplexity=perplexity, random_state=seed).fit_transform(matrix)
    return np.asarray(found, np.float64)


def _umap(matrix: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    try:
        import umap
    except ImportError as error:
        raise missing("umap-learn", "umap") from error
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="umap")  # that there is no inverse transform, and one thread
        reducer = umap.UMAP(
            metric="precomputed",
            n_neighbors=min(15, len(matrix) - 1),
            init=10 * start / max(np.abs(start).max(), 1e-12),
            random_state=seed,
        )
        return np.asarray(reducer.fit_transform(matrix), np.float64)
