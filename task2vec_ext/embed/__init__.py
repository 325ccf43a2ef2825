"""From a task to its embedding."""

from .diversity import cross_diversity, diversity, embed_batches
from .feature_cache import FeatureCache
from .fisher_embed import fisher_embed

__all__ = [
    "FeatureCache",
    "cross_diversity",
    "diversity",
    "embed_batches",
    "fisher_embed",
]
