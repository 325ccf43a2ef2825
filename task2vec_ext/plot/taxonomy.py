"""Does task space know the taxonomy? How far in it the nearest tasks are."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._figure import checked_distances, legend, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lineages = Sequence[Mapping[str, str]]
"""Of one task: rank -> taxon for each of its classes, or one for all of them, as far down as they agree."""

_UNPLACED = ("", "NA")  # how tables write that a class has no such taxon


def read_taxonomy(file: str | os.PathLike[str]) -> tuple[tuple[str, ...], dict[str, Lineages]]:
    """Return ranks and lineages from a table.

    Args:
        file: CSV with a column ``task`` and one for each rank, the highest first (``kingdom``, …, ``family``); a row
            for each class of a task, or one for the task. Empty or ``NA``: no such taxon.

    Returns:
        The ranks, and task -> lineages.

    Raises:
        ValueError: If the file is missing, has no column ``task``, or none besides.
    """
    where = Path(file)
    if not where.is_file():
        raise ValueError(f"read_taxonomy: expected a CSV file, got {where}, which is none.")
    # surrogateescape: names of tasks need not be UTF-8.
    with where.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        ranks = tuple(column for column in reader.fieldnames or () if column != "task")
        if not ranks or len(ranks) == len(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise ValueError(f"read_taxonomy: expected columns task and ranks, highest first, in {where}, got {found}.")
        lineages = defaultdict(list)
        for row in reader:
            taxa = {rank: row[rank] for rank in ranks if (row[rank] or "") not in _UNPLACED}
            if taxa:
                lineages[row["task"]].append(taxa)
    return ranks, dict(lineages)


def taxonomic_distances(lineages: Sequence[Lineages], ranks: Sequence[str]) -> np.ndarray:
    """Return how many ranks up from the lowest two tasks join, by those of their classes that join first.

    Of the ranks kingdom … family: 0 where two classes share a family, order 1, class 2, phylum 3, kingdom 4, and 5
    where they share nothing.

    Args:
        lineages: Of T tasks, one or more each.
        ranks: R of them, the highest first.

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
        # Two of one name under different taxa are different taxa.
        places = [{_place(taxa, ranks[:depth]) for taxa in of_task} - {None} for of_task in lineages]
        columns = {place: column for column, place in enumerate(sorted({p for own in places for p in own}, key=str))}
        has = np.zeros((T, len(columns)), np.float32)
        for row, own in enumerate(places):
            has[row, [columns[place] for place in own]] = 1
        distances[has @ has.T > 0] = R - depth
    np.fill_diagonal(distances, 0.0)
    return distances


def _place(taxa: Mapping[str, str], ranks: Sequence[str]) -> tuple[str, ...] | None:
    """The taxa from the top down to the last of the ranks, if it has that."""
    return tuple(taxa[rank] for rank in ranks if rank in taxa) if ranks[-1] in taxa else None


@styled
def plot_taxonomy(
    distances: Any,
    taxonomic: Any,
    *,
    ranks: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Return axes with the mean taxonomic distance of the k nearest tasks, over k.

    Beside it the least that any order of the tasks could have, the taxonomy's own, and the mean of tasks drawn by
    chance.

    Args:
        distances: ``[T, T]`` tensor or array, any ``distance_matrix``; columns are targets.
        taxonomic: ``[T, T]``, see `taxonomic_distances`.
        ranks: Its ranks, the highest first, to name the distances by; or None.
        title: Title, or None.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes with three lines: ``k nearest``, ``taxonomy's own order``, ``chance``.

    Raises:
        ValueError: If a matrix is not ``[T, T]`` or not finite, or T < 2.
        ImportError: If matplotlib is not installed.

    Source:
        Achille et al., ICCV 2019, figure 3.
    """
    matrix = checked_distances("plot_taxonomy", distances, **{"rows of taxonomic distances": taxonomic})
    steps = checked_distances("plot_taxonomy", taxonomic)
    T = len(matrix)
    if T < 2:
        raise ValueError("plot_taxonomy: expected two or more tasks with a place in the taxonomy, got one.")
    others = ~np.eye(T, dtype=bool)
    by_distance = np.stack(
        [steps[others[:, j], j][np.argsort(matrix[others[:, j], j], kind="stable")] for j in range(T)]
    )
    if ax is None:
        ax = new_figure(7.0, 4.6).add_subplot()
    k = np.arange(1, T)
    marker = "o" if T <= 20 else ""
    ax.plot(k, _running_mean(by_distance), marker=marker, ls="-", color="#0072B2", lw=2, label="k nearest")
    own = _running_mean(np.sort(by_distance, axis=1))
    ax.plot(k, own, marker=marker, ls="--", color="#009E73", lw=1.5, label="taxonomy's own order")
    ax.axhline(float(steps[others].mean()), ls=":", color="0.35", lw=1.5, label="chance")
    ax.set(xlabel="k", ylabel="mean taxonomic distance of the k nearest", xlim=(1, max(T - 1, 1.5)))
    ax.set_ylim(bottom=min(0.0, float(own[0])))
    if ranks is not None:
        top = int(np.ceil(ax.get_ylim()[1]))
        named = [f"{step}: same {rank}" for step, rank in enumerate(reversed(ranks))] + [f"{len(ranks)}: nothing"]
        ax.set_yticks(range(len(named[: top + 1])), named[: top + 1], fontsize=9)
    ax.grid(color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
    legend(ax, ax.get_lines(), loc="lower right")
    if title is not None:
        ax.set_title(title)
    return ax


def _running_mean(ordered: np.ndarray) -> np.ndarray:
    """Mean over tasks of the mean of the first k, ``[T − 1]``."""
    return (ordered.cumsum(axis=1) / np.arange(1, ordered.shape[1] + 1)).mean(axis=0)
