"""The Fisher of a few tasks, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..distance import check_comparable, with_error
from ..embedding import Embedding
from .figure import GROUP_COLOURS, label_text, legend, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_ORDER = (4, 5, 2, 6, 0, 1, 7, 3)  # of GROUP_COLOURS: the first two tasks are blue and vermilion


@styled
def plot_layers(embeddings: Sequence[Embedding], *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Return axes with the mean Fisher of each layer's filters, one line a task.

    Args:
        embeddings: One to eight, comparable.
        title: Title, or None.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes, log scale, with 95 % jackknife intervals of embeddings that have error bars. A layer whose filters are
        all dead has no point.

    Raises:
        ValueError: If there are none or more than eight, or they do not compare.
        ImportError: If matplotlib is not installed.
    """
    if not 1 <= len(embeddings) <= len(_MARKERS):
        raise ValueError(f"plot_layers: expected one to {len(_MARKERS)} embeddings, got {len(embeddings)}.")
    check_comparable(embeddings)
    layers = embeddings[0].layers
    L = len(layers)
    ax = ax or new_figure(max(6.0, 0.23 * L + 2.0), 4.8).add_subplot()
    ax.set_yscale("log")
    for number, embedding in enumerate(embeddings):
        means, intervals = _layer_means(embedding)
        means = np.where(means > 0, means, np.nan)
        at, colour = np.arange(L) + 0.24 * (number - (len(embeddings) - 1) / 2), GROUP_COLOURS[_ORDER[number]]
        ax.plot(at, means, _MARKERS[number], ls="-", lw=0.6, ms=3.5, color=colour, label=label_text(embedding.name, 60))
        if intervals is not None:
            ax.vlines(at, *intervals, color=colour, lw=1.4)
    ax.set_xticks(range(L), [label_text(layer.name) for layer in layers], rotation=90, fontsize=7)
    ax.set(xlim=(-0.7, L - 0.3), ylabel="mean Fisher of the filters (nats² per weight²)")
    ax.grid(axis="y", color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
    legend(ax, ax.get_lines(), loc="lower left", bbox_to_anchor=(0.0, 1.02), ncols=2)
    if title is not None:
        ax.set_title(title, pad=12 + 16 * -(-len(embeddings) // 2))
    return ax


def _layer_means(embedding: Embedding) -> tuple[np.ndarray, np.ndarray | None]:
    """Return means ``[L]`` and the ends of their intervals ``[2, L]``."""

    def means(fisher: Tensor) -> Tensor:
        return torch.stack([fisher[layer.start : layer.stop].mean() for layer in embedding.layers])

    if embedding.group_means is None:
        return means(embedding.fisher).numpy(), None
    estimate = with_error(means, embedding, log=True)
    return estimate.value.numpy(), torch.stack(estimate.interval()).numpy()
