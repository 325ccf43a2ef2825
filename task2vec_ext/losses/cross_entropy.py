"""One class per image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import ClassLabel, Target, check_labels
from ._common import WHO, check_lengths, checked_head_options, per_image
from .loss import Loss


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """One class per image: integers 0…C−1, each of which occurs.

    Args:
        class_weights: C positive numbers, the weights of the classes' images in the head's fit; only ratios matter.
        label_smoothing: The s in [0, 1) with which the head is fitted to (1 − s)·e_y + s/C.
    """

    name = "cross_entropy"
    metric = "accuracy"

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "class_weights", checked_head_options(self.class_weights, self.label_smoothing))

    @property
    def target(self) -> Target:
        return ClassLabel()

    def prepare(self, targets: Tensor, features: Tensor, seed: int) -> tuple[Tensor, int]:
        num_classes = check_labels(targets, who=WHO)
        check_lengths(self.class_weights, num_classes, "class_weights")
        return targets, num_classes

    def answers(self, targets: Tensor) -> Tensor:
        return torch.stack([torch.arange(len(targets)), targets], 1)

    def weights(self, targets: Tensor, num_outputs: int, balanced: bool) -> Tensor:
        counts = torch.bincount(targets, minlength=num_outputs).double()
        per_class = len(targets) / (num_outputs * counts) if balanced else torch.ones_like(counts)
        if self.class_weights is not None:
            given = per_class.new_tensor(self.class_weights)
            per_class = given * (len(targets) / (given * counts).sum())
        return per_class[targets][:, None]

    def objective(self, targets: Tensor, num_outputs: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        s = self.label_smoothing
        goal = F.one_hot(targets, num_outputs).double() * (1 - s) + s / num_outputs

        def terms(logits: Tensor) -> tuple[Tensor, Tensor]:
            log_p = logits.log_softmax(-1)
            return -(goal * log_p).sum(-1, keepdim=True), log_p.exp() - goal

        return terms

    def nll(self, logits: Tensor, targets: Tensor) -> float:
        return float(F.cross_entropy(logits, targets))

    def score(self, logits: Tensor, targets: Tensor) -> float:
        return float((logits.argmax(1) == targets).double().mean())

    def root(self, logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        p = logits.double().softmax(-1)
        scaled = p.sqrt() * noise.to(p)
        return scaled - p * scaled.sum(-1, keepdim=True)

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        p = logits.double().softmax(-1)
        return p.scatter_add(-1, targets[..., None], -torch.ones_like(p[..., :1]))

    def sample(self, logits: Tensor, targets: Tensor, index: Tensor, seed: int) -> Tensor:
        p = logits.double().softmax(-1)
        uniform = per_image(index, seed, lambda random: random.random((*logits.shape[1:-1], 1)), p.device)
        return (p.cumsum(-1) < uniform).sum(-1).clamp(max=logits.shape[-1] - 1)
