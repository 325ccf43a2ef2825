"""Plots of tasks, with matplotlib (extra ``plot``). Each function draws one and returns its Axes.

| function | shows |
|---|---|
| `plot_matrix` | all distances, with the tree that orders them |
| `plot_map` | tasks as points in the plane, near tasks together (t-SNE or UMAP) |
| `plot_taxonomy` | mean taxonomic distance of the k nearest tasks, over k |
| `plot_norms` | norm of the embeddings against the error of their heads, with error bars |
| `plot_layers` | the Fisher of a few tasks, layer by layer |

`save_figure` writes PNG, SVG or PDF. Nothing here uses pyplot or its global state.
"""

from .figure import check_installed, save_figure
from .layers import plot_layers
from .map import map_positions, plot_map
from .matrix import cluster_order, plot_matrix
from .norms import plot_norms
from .taxonomy import Lineages, plot_taxonomy, read_taxonomy, taxonomic_distances

__all__ = [
    "Lineages",
    "check_installed",
    "cluster_order",
    "map_positions",
    "plot_layers",
    "plot_map",
    "plot_matrix",
    "plot_norms",
    "plot_taxonomy",
    "read_taxonomy",
    "save_figure",
    "taxonomic_distances",
]
