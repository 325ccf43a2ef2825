"""Norm of the embeddings, a measure of difficulty, against the error of the heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..distance import norm_with_error
from ..embedding import Embedding
from .figure import new_figure, styled
from .labels import write_names
from .map import draw_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def norm_interval(embedding: Embedding) -> tuple[float, float]:
    """Return the ends of the norm's 95 % interval, both the norm itself where the embedding has no error bars."""
    if embedding.group_means is None or embedding.norm == 0:
        return embedding.norm, embedding.norm
    low, high = norm_with_error(embedding).interval()
    return float(low), float(high)


@styled
def plot_norms(
    embeddings: Iterable[Embedding],
    errors: Sequence[float] | None = None,
    *,
    groups: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Return axes with the norm of each embedding against the task's error.

    Args:
        embeddings: T embeddings, read one at a time.
        errors: T errors in any measure, say test errors. Default: the heads' mean negative log-likelihood, held-out
            where the embeddings have it.
        groups: T group names (say, domains), drawn as colours and markers with a legend, or None.
        title: Title; default: Spearman's rank correlation of norm and error.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes: x is ‖F‖₁, with its 95 % jackknife interval where the embedding has error bars, y the error. Each
        scale is logarithmic unless a value is zero.

    Raises:
        ValueError: If there are no embeddings, or not T errors or groups.
        ImportError: If matplotlib, or scipy for the correlation, is not installed.

    Source:
        Achille et al., ICCV 2019, figure 2: norm against test error.
    """
    rows = [
        (item.name, (item.norm, *norm_interval(item)), item.head.best_nll, item.head.protocol) for item in embeddings
    ]
    for word, values in (("errors", errors), ("groups", groups)):
        if not rows or (values is not None and len(values) != len(rows)):
            found = f"{len(rows)} embeddings" if values is None else f"{len(rows)} embeddings and {len(values)} {word}"
            raise ValueError(f"plot_norms: expected one or more embeddings and as many {word}, got {found}.")
    norms = np.array([norm for _, norm, *_ in rows])
    heights = np.array([nll for *_, nll, _ in rows] if errors is None else errors, np.float64)
    protocols = sorted({protocol for *_, protocol in rows})
    ax = ax or new_figure(11.5 if groups is not None else 9.0, 6.5).add_subplot()
    ax.set(
        xscale="log" if (norms > 0).all() else "linear",
        yscale="log" if (heights > 0).all() else "linear",
        xlabel="norm of the embedding (nats² per weight²), with 95 % interval",
        ylabel=f"{' or '.join(protocols)} NLL of the head (nats per image)" if errors is None else "error",
    )
    ax.margins(x=0.06, y=0.08)
    for limit, span in ((ax.set_xlim, norms), (ax.set_ylim, heights)):
        if np.ptp(span) == 0 < span.min():  # one task without interval: a log scale does not widen by itself
            limit(span.min() / 2, span.max() * 2)
    ax.hlines(heights, norms[:, 1], norms[:, 2], color="0.6", lw=0.8, zorder=2)
    places = np.stack([norms[:, 0], heights], axis=1)
    draw_points(ax, places, groups)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(_correlation(norms[:, 0], heights) if title is None else title, fontsize=10)
    intervals = np.stack([np.stack([norms[:, end], heights], axis=1) for end in (1, 2)], axis=1)
    write_names(ax, places, [name for name, *_ in rows], lines=intervals)
    return ax


def _correlation(norms: np.ndarray, errors: np.ndarray) -> str:
    if len(norms) < 3 or np.ptp(norms) == 0 or np.ptp(errors) == 0:
        return ""
    from scipy.stats import spearmanr

    return f"{len(norms):,} tasks, Spearman's ρ = {spearmanr(norms, errors).statistic:.2f}"
