"""What a task's targets are: one class per image, several labels, numbers, a class per pixel, or nothing.

Pass a name or an object as ``fisher_embed(…, loss="multilabel")`` or ``loss=MultiLabel(label_smoothing=0.1)``.

| loss | targets of an image | p(y given x) | A |
|---|---|---|---|
| `CrossEntropy` | a class | softmax | diag(√p) − p√pᵀ |
| `MultiLabel` | any of C labels; some may be unknown | C independent Bernoullis | diag(√(p(1−p))) |
| `Regression` | K numbers | Gaussian, variance σ_k² | diag(1/σ) |
| `Dense` | a class for every pixel | softmax in every cell of the feature map | one block per labelled cell |
| `PseudoLabels` | none | softmax over k-means clusters | as `CrossEntropy` |

The Fisher information needs one thing of a loss: a root A of the covariance of ``∂ log p(y|x) / ∂ logits`` under the
model's own distribution, ``AAᵀ = E_y[∇ log p ∇ log pᵀ]``. The columns of A are the exact cotangents; ``Aε`` with random
signs ε has the same second moment, from one backward pass.

**Class weights, label smoothing and class balance act only on the head's fit.** They decide which model describes the
task; the Fisher information is that model's, under its own distribution.

Source:
    Achille et al. 2019, §2; Martens, Sutskever, Swersky, ICML 2012 (random signs: curvature propagation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..words import LossName
from ._common import per_image, signs_per_image
from .cross_entropy import CrossEntropy
from .dense import Dense
from .loss import Loss
from .multilabel import MultiLabel
from .pseudo_labels import PseudoLabels
from .regression import Regression

_BY_NAME: dict[str, type[Loss]] = {kind.name: kind for kind in (CrossEntropy, MultiLabel, Regression, Dense)}

__all__ = [
    "CrossEntropy",
    "Dense",
    "Loss",
    "LossName",
    "MultiLabel",
    "PseudoLabels",
    "Regression",
    "as_loss",
    "loss_of",
    "per_image",
    "signs_per_image",
]


def as_loss(loss: LossName | Loss) -> Loss:
    """Return the loss of a name, with its default options, or the loss itself.

    Args:
        loss: A name, or a loss such as ``Regression(noise="residual")``.

    Raises:
        ValueError: If there is no loss of that name.
        TypeError: If it is neither a name nor a loss.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise TypeError(
            f"fisher_embed: expected loss as a name or a Loss, got {loss!r}; pass Regression(), not the class."
        )
    if loss not in _BY_NAME:
        raise ValueError(f"fisher_embed: expected loss to be one of {', '.join(_BY_NAME)}; got {loss!r}.")
    return _BY_NAME[loss]()


def loss_of(options: Mapping[str, Any]) -> Loss:
    """Return the loss that a dictionary of `Loss.options` describes."""
    kind = (_BY_NAME | {PseudoLabels.name: PseudoLabels})[options["name"]]
    return kind(**{key: value for key, value in options.items() if key != "name"})
