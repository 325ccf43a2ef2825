"""Is a task with a large norm a hard one? Norm against error of the head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..uncertainty import norm_with_error
from ._figure import new_figure, styled
from ._labels import write_names
from .map import draw_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..embedding import Embedding


class Norm(NamedTuple):
    """The norm of a task, between its limits.

    Args:
        value: ‖F‖₁, nats² per weight².
        low: End of the 95 % interval, or `value` where the embedding has no error bars.
        high: The other.
    """

    value: float
    low: float
    high: float


def norm_of(embedding: Embedding) -> Norm:
    """Return the norm with its jackknife interval."""
    if embedding.group_means is None or embedding.norm == 0:
        return Norm(*[embedding.norm] * 3)
    return Norm(embedding.norm, *(float(end) for end in norm_with_error(embedding).interval()))


@styled
def plot_norms(
    embeddings: Iterable[Embedding],
    *,
    groups: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Return axes with the norm of each task against the error of its head, on the pictures that it was fitted to.

    Args:
        embeddings: T of them, one after the other: only figures are kept.
        groups: T group names (say, domains): colours and markers with a legend; or None.
        title: Title; default: Spearman's rank correlation of the two.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes; x is ‖F‖₁ with its 95 % jackknife interval where the embedding has error bars, y is 1 − score.

    Raises:
        ValueError: There are no embeddings, groups are not T, or heads were scored in different measures.
        ImportError: matplotlib or scipy is not installed.
    """
    rows = [(item.name, norm_of(item), 1 - item.head.score, item.head.metric) for item in embeddings]
    if not rows or (groups is not None and len(groups) != len(rows)):
        raise ValueError(
            f"plot_norms: expected one or more embeddings and a group for each, got {len(rows)} embeddings and "
            f"{'no' if groups is None else len(groups)} groups."
        )
    metrics = sorted({metric for *_, metric in rows})
    if len(metrics) > 1:
        raise ValueError(f"plot_norms: expected heads scored in one measure, got {', '.join(metrics)}; draw each alone.")
    norms = np.array([norm for _, norm, _, _ in rows])
    errors = np.array([error for _, _, error, _ in rows])
    if ax is None:
        ax = new_figure(10.5 if groups is not None else 8.0, 6.5).add_subplot()
    places = np.stack([norms[:, 0], errors], axis=1)
    if (norms > 0).all():
        ax.set_xscale("log")
    ax.hlines(errors, norms[:, 1], norms[:, 2], color="0.6", lw=0.8, zorder=2)
    draw_points(ax, places, groups)
    # The error that is not there is drawn on the axis, whole.
    ax.set_ylim(min(0.0, float(errors.min())) - 0.03 * max(float(np.ptp(errors)), 0.05))
    ax.margins(x=0.08)
    ax.set(xlabel="norm of the embedding (nats² per weight²), 95 % interval", ylabel=f"error of the head, 1 − {metrics[0]}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(_correlation(norms[:, 0], errors) if title is None else title, fontsize=10)
    write_names(ax, places, [name for name, *_ in rows])
    return ax


def _correlation(norms: np.ndarray, errors: np.ndarray) -> str:
    if len(norms) < 3 or np.ptp(norms) == 0 or np.ptp(errors) == 0:
        return ""
    from scipy.stats import spearmanr

    return f"{len(norms)} tasks, Spearman's ρ = {spearmanr(norms, errors).statistic:.2f}"
