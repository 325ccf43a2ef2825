"""Any number of labels per image; some may be unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import LabelSet, Target
from ._common import WHO, check_lengths, check_some, checked_head_options, per_image
from .loss import Loss


@dataclass(frozen=True)
class MultiLabel(Loss):
    """Any of C labels per image, each an independent Bernoulli variable.

    A label that is unknown for an image (−1 or NaN in a multi-hot tensor) is left out of the head's fit: each label's
    head is fitted to its known images. The Fisher information is that of the model's distribution over all C labels,
    for every image: an unknown label is unobserved, not unmodelled.

    Args:
        num_classes: C; needed where targets are lists of label indices.
        class_weights: C positive numbers, the labels' weights in the head's fit.
        label_smoothing: The s in [0, 1) with which the head is fitted to (1 − s)·y + s/2.
    """

    name = "multilabel"
    metric = "mean average precision"

    num_classes: int | None = None
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "class_weights", checked_head_options(self.class_weights, self.label_smoothing))

    @property
    def target(self) -> Target:
        return LabelSet(self.num_classes)

    def prepare(self, targets: Tensor, features: Tensor, seed: int) -> tuple[Tensor, int]:
        check_some(targets)
        check_lengths(self.class_weights, targets.shape[1], "class_weights")
        constant = ~((targets == 0).any(0) & (targets == 1).any(0))
        if constant.any():
            c = int(constant.nonzero()[0])
            known = targets[:, c][~targets[:, c].isnan()]
            found = f"{int(known[0])} for every image" if len(known) else "known for no image"
            raise ValueError(
                f"{WHO}: expected every label to be 1 for some images and 0 for others, label {c} is {found} "
                f"({int(constant.sum())} such of {len(constant)}); leave such labels out, or use more images."
            )
        return targets, targets.shape[1]

    def answers(self, targets: Tensor) -> Tensor:
        return torch.cat([targets == 1, targets == 0], 1).nonzero()

    def weights(self, targets: Tensor, num_outputs: int, balanced: bool) -> Tensor:
        yes, no = ((targets == answer).double() for answer in (1, 0))
        known = yes + no
        # Balanced: both answers to a label have the same total weight.
        each = (yes / yes.sum(0) + no / no.sum(0)) * known.sum(0) / 2 if balanced else known
        if self.class_weights is not None:
            each = each * each.new_tensor(self.class_weights)
        return each * (len(targets) / known.sum(0))

    def objective(self, targets: Tensor, num_outputs: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        goal = targets.double().nan_to_num(0.5) * (1 - self.label_smoothing) + self.label_smoothing / 2

        def terms(logits: Tensor) -> tuple[Tensor, Tensor]:
            losses = F.binary_cross_entropy_with_logits(logits, goal.expand_as(logits), reduction="none")
            return losses, logits.sigmoid() - goal

        return terms

    def nll(self, logits: Tensor, targets: Tensor) -> float:
        known = ~targets.isnan()
        terms = F.binary_cross_entropy_with_logits(logits[known], targets[known].double(), reduction="sum")
        return float(terms) / len(targets)

    def score(self, logits: Tensor, targets: Tensor) -> float:
        known = [~y.isnan() for y in targets.T]
        each = [_average_precision(f[k], y[k] == 1) for f, y, k in zip(logits.T, targets.T, known, strict=True)]
        return sum(each) / len(each)

    def root(self, logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        p = logits.double().sigmoid()
        return (p * (-logits.double()).sigmoid()).sqrt() * noise.to(p)

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.double().sigmoid() - targets).nan_to_num(0.0)  # NaN: the label is unknown

    def sample(self, logits: Tensor, targets: Tensor, index: Tensor, seed: int) -> Tensor:
        p = logits.double().sigmoid()
        return (per_image(index, seed, lambda random: random.random(logits.shape[1:]), p.device) < p).to(p)


def _average_precision(scores: Tensor, positive: Tensor) -> float:
    """The mean over the positives of the precision among all that score at least as high; ties count as one."""
    ranked, hits = scores.sort().values, scores[positive].sort().values
    above, hits_above = ((len(some) - torch.searchsorted(some, hits)).double() for some in (ranked, hits))
    return float((hits_above / above).mean())
