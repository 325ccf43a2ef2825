"""What `task2vec_ext` exports; it imports this on the first use of one of the names."""

from ._util.warnings import Task2VecWarning
from .data import Preprocess, Task, as_task
from .distance.distance import cross_distances, distance_matrix
from .distance.reference import Reference
from .distance.uncertainty import neighbour_ranks, norm_with_error, relative_error, with_error
from .embed.diversity import cross_diversity, diversity, embed_batches
from .embed.feature_cache import FeatureCache
from .embed.fisher_embed import fisher_embed
from .embedding import Embedding
from .fisher import HeadSettings, VariationalSettings
from .jackknife import Estimate
from .kernels.filter_grad_sq import filter_grad_sq
from .kernels.native import BuildInfo, build_info
from .library import Library, build_library, embed_for, load_embeddings
from .probe.load import load_probe
from .probe.probe import Probe
from .settings import EmbedSettings

__all__ = [
    "BuildInfo",
    "EmbedSettings",
    "Embedding",
    "Estimate",
    "FeatureCache",
    "HeadSettings",
    "Library",
    "Preprocess",
    "Probe",
    "Reference",
    "Task",
    "Task2VecWarning",
    "VariationalSettings",
    "as_task",
    "build_info",
    "build_library",
    "cross_distances",
    "cross_diversity",
    "distance_matrix",
    "diversity",
    "embed_batches",
    "embed_for",
    "filter_grad_sq",
    "fisher_embed",
    "load_embeddings",
    "load_probe",
    "neighbour_ranks",
    "norm_with_error",
    "relative_error",
    "with_error",
]
