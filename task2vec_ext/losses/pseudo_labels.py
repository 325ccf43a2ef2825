"""No labels: clusters of the features are the classes."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data import Target, Unlabelled
from ._common import WHO
from .cross_entropy import CrossEntropy


@dataclass(frozen=True)
class PseudoLabels(CrossEntropy):
    """Unlabelled images: the classes are k-means clusters of the probe's features (scikit-learn, 10 starts).

    The head tells apart clusters that the probe already separates. Such an embedding describes the images as the probe
    sees them, not a question about them, and compares only with others of pseudo-labels.

    Args:
        num_clusters: K, at least 2 and at most the number of images.
        class_weights: See `CrossEntropy`; clusters have no fixed order.
        label_smoothing: See `CrossEntropy`.

    Raises:
        ImportError: If scikit-learn is not installed.

    Source:
        Wallace, Wu, Hariharan, Can we characterize tasks without labels or features?, CVPR 2021.
    """

    name = "pseudo_labels"

    num_clusters: int = field(kw_only=True)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if isinstance(self.num_clusters, bool) or not isinstance(self.num_clusters, int) or self.num_clusters < 2:
            raise ValueError(f"{WHO}: expected num_clusters as a whole number >= 2, got {self.num_clusters!r}.")
        if importlib.util.find_spec("sklearn") is None:
            raise ImportError(f"{WHO}: PseudoLabels needs scikit-learn; pip install 'task2vec_ext[pseudo-labels]'.")

    @property
    def target(self) -> Target:
        return Unlabelled()

    def prepare(self, targets: Tensor, features: Tensor, seed: int) -> tuple[Tensor, int]:
        k = self.num_clusters
        if len(features) < k:
            raise ValueError(f"{WHO}: expected at least {k} images for {k} clusters, got {len(features)}.")
        if not torch.isfinite(features).all():
            return targets, k  # an error of the head's fit, which names the images
        from sklearn.cluster import KMeans

        means = KMeans(k, n_init=10, random_state=seed % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too few distinct points: an error below
            labels = torch.from_numpy(means.fit_predict(features.double().numpy())).long()
        if (found := len(labels.unique())) < k:
            raise ValueError(f"{WHO}: expected {k} clusters, got {found} distinct images; use fewer clusters.")
        return labels, k
