"""From a task to its embedding: `fisher_embed`, and its steps for those who need one of them."""

from .diversity import cross_diversity, diversity, embed_batches
from .feature_cache import FeatureCache
from .features import read_features
from .fisher_embed import embed_like, embed_task, fisher_embed
from .steps import draw_images, fit_task_head, measure_fisher, measure_robust_fisher
from .work import Work

__all__ = [
    "FeatureCache",
    "Work",
    "cross_diversity",
    "diversity",
    "draw_images",
    "embed_batches",
    "embed_like",
    "embed_task",
    "fisher_embed",
    "fit_task_head",
    "measure_fisher",
    "measure_robust_fisher",
    "read_features",
]
