"""Distances in a taxonomy, and the mean taxonomic distance of the nearest tasks."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure import checked_distances, legend, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lineages = Sequence[Mapping[str, str]]
"""The lineages of one task, rank -> taxon: one for each class, or one down to the rank that all classes share."""

_UNPLACED = ("", "NA")  # cells of classes without a taxon of that rank


def read_taxonomy(file: str | os.PathLike[str]) -> tuple[tuple[str, ...], dict[str, Lineages]]:
    """Return the ranks and lineages of a table.

    Args:
        file: CSV with a column ``task`` and one for each rank, the highest first (``kingdom``, …, ``family``), and a
            row for each class of a task, or one for the task. An empty cell or ``NA`` means no taxon.

    Returns:
        The ranks, and task -> lineages.

    Raises:
        ValueError: If the file is missing, or has no column ``task`` or no rank.
    """
    if not os.path.isfile(file):
        raise ValueError(f"read_taxonomy: expected a CSV file, got {file}, which does not exist.")
    # surrogateescape: names of tasks need not be UTF-8.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        ranks = tuple(column for column in reader.fieldnames or () if column != "task")
        if not ranks or len(ranks) == len(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise ValueError(f"read_taxonomy: expected columns task and ranks, highest first, in {file}, got {found}.")
        lineages = defaultdict(list)
        for row in reader:
            taxa = {rank: row[rank] for rank in ranks if (row[rank] or "") not in _UNPLACED}
            if taxa:
                lineages[row["task"]].append(taxa)
    return ranks, dict(lineages)


def taxonomic_distances(lineages: Sequence[Lineages], ranks: Sequence[str]) -> np.ndarray:
    """Return the taxonomic distance of every two tasks, that of their closest two classes.

    With the ranks kingdom … family it is 0 for classes of one family, 1 for one order, 2 for one class, 3 for one
    phylum, 4 for one kingdom, and 5 for nothing in common.

    Args:
        lineages: The lineages of T tasks, one or more each.
        ranks: R ranks, the highest first.

    Returns:
        ``[T, T]`` float64, 0 on the diagonal.

    Raises:
        ValueError: If a task has no lineage with one of these ranks.

    Source:
        Achille et al., ICCV 2019, §5.
    """
    for number, of_task in enumerate(lineages):
        if not any(rank in taxa for taxa in of_task for rank in ranks):
            raise ValueError(
                f"taxonomic_distances: expected a lineage of {', '.join(ranks)} for every task, got none for task "
                f"{number}; leave it out."
            )
    T, R = len(lineages), len(ranks)
    distances = np.full((T, T), float(R))
    for depth in range(1, R + 1):
        # Taxa of the same name under different parents are different taxa.
        places = [{_place(taxa, ranks[:depth]) for taxa in of_task} - {None} for of_task in lineages]
        columns = {place: column for column, place in enumerate(sorted({p for own in places for p in own}, key=str))}
        has = np.zeros((T, len(columns)), np.float32)
        for row, own in enumerate(places):
            has[row, [columns[place] for place in own]] = 1
        distances[has @ has.T > 0] = R - depth
    np.fill_diagonal(distances, 0.0)
    return distances


def _place(taxa: Mapping[str, str], ranks: Sequence[str]) -> tuple[str, ...] | None:
    """Return the taxa from the top down to the last rank, or None without a taxon of that rank."""
    return tuple(taxa[rank] for rank in ranks if rank in taxa) if ranks[-1] in taxa else None


@styled
def plot_taxonomy(
    distances: Any,
    taxonomic: Any,
    *,
    ranks: Sequence[str] | None = None,
    distance: str = "distance",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Return axes with the mean taxonomic distance of the k nearest tasks, over k.

    Two lines frame it: the least possible (neighbours in the order of the taxonomy) and the mean of random neighbours.

    Args:
        distances: ``[T, T]`` tensor or array, any ``distance_matrix``; columns are targets.
        taxonomic: ``[T, T]``, see `taxonomic_distances`.
        ranks: Its ranks, the highest first, as labels of the y axis, or None.
        distance: What the distances are called, say ``"d_sym"``.
        title: Title, or None.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes with three lines: ``k nearest``, ``taxonomy's own order``, ``chance``.

    Raises:
        ValueError: If a matrix is not ``[T, T]`` or not finite, or T < 2.
        ImportError: If matplotlib is not installed.

    Source:
        Achille et al., ICCV 2019, figure 3.
    """
    from matplotlib.ticker import MaxNLocator

    matrix = checked_distances("plot_taxonomy", distances, **{"rows of taxonomic distances": taxonomic})
    steps = checked_distances("plot_taxonomy", taxonomic)
    T = len(matrix)
    if T < 2:
        raise ValueError("plot_taxonomy: expected two or more tasks, got one.")
    others = ~np.eye(T, dtype=bool)
    columns = [(matrix[others[:, j], j], steps[others[:, j], j]) for j in range(T)]
    by_distance = np.stack([far[np.argsort(near, kind="stable")] for near, far in columns])
    ax = ax or new_figure(7.0, 4.6).add_subplot()
    k, marker = np.arange(1, T), "o" if T <= 20 else ""
    ax.plot(k, _running_mean(by_distance), marker=marker, ls="-", color="#0072B2", lw=2, label="k nearest")
    own = _running_mean(np.sort(by_distance, axis=1))
    ax.plot(k, own, marker=marker, ls="--", color="#009E73", lw=1.5, label="taxonomy's own order")
    ax.axhline(float(steps[others].mean()), ls=":", color="0.35", lw=1.5, label="chance")
    ax.set(xlabel=f"k nearest by {distance}", ylabel="their mean taxonomic distance", xlim=(1, max(T - 1, 1.5)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(bottom=min(0.0, float(own[0])))
    if ranks is not None:
        words = [*(f"same {rank}" for rank in reversed(ranks)), "nothing in common"]
        shown = [f"{step}: {word}" for step, word in enumerate(words[: int(np.ceil(ax.get_ylim()[1])) + 1])]
        ax.set_yticks(range(len(shown)), shown, fontsize=9)
    ax.grid(color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
    legend(ax, ax.get_lines(), loc="lower right")
    if title is not None:
        ax.set_title(title)
    return ax


def _running_mean(ordered: np.ndarray) -> np.ndarray:
    """Return the mean over tasks of the mean of the first k, ``[T − 1]``."""
    return (ordered.cumsum(axis=1) / np.arange(1, ordered.shape[1] + 1)).mean(axis=0)
