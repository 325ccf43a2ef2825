"""Pictures of tasks, with matplotlib (extra ``plot``): each function draws one and returns its Axes.

| picture | shows |
|---|---|
| `plot_matrix` | all distances, near tasks side by side, with the tree that orders them |
| `plot_map` | tasks as points in the plane, near ones together (t-SNE or UMAP) |
| `plot_taxonomy` | how far in a taxonomy the k nearest tasks are, over k |
| `plot_norms` | complexity of the tasks against the error of their heads, with intervals |
| `plot_layers` | the Fisher of a few tasks, layer by layer |

No global state of pyplot is touched. `save_figure` writes PNG, SVG or PDF.
"""

from ._figure import check_installed, save_figure, shorten
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
    "shorten",
    "taxonomic_distances",
]
