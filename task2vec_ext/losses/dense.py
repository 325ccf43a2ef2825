"""A class for every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Mask, Target
from ._common import WHO, check_lengths
from .cross_entropy import CrossEntropy


@dataclass(frozen=True)
class Dense(CrossEntropy):
    """A class for every pixel, predicted in every cell of the probe's last feature map by a 1×1 convolution.

    A cell's label is that of the pixel under its centre. The labelled cells of an image are independent given the
    image, and log p is their **sum**: the Fisher information grows with their number. (A mean over cells would not be
    the logarithm of a distribution.) Ignored pixels and the padding around an image count neither in the fit nor in the
    Fisher information. The head is fitted to the mean over cells.

    Classes that no cell shows are not part of the task; the others are numbered 0…C−1 in ascending order.

    Args:
        class_weights: C positive numbers, the weights of the classes' cells in the head's fit.
        label_smoothing: See `CrossEntropy`.
        ignore_index: The masks' value for pixels that are not labelled.
        pool: Name of the module whose **input** is the feature map ``[B, D, h, w]``: the probe's global pooling, or an
            earlier module for a finer map (``"layer4"``).

    Note:
        The features of all cells are kept, ``4·N·h·w·D`` bytes, and the fit takes about 32 bytes per feature of a
        labelled cell. "exact" takes C·h·w backward passes per image, and is refused above 1,024.
    """

    name = "dense"
    max_passes = 1024  # what "signed" needs for a thousand times as many images

    ignore_index: int = 255
    pool: str = "avgpool"

    @property
    def target(self) -> Target:
        return Mask(self.ignore_index)

    def align(self, targets: Tensor, features: Tensor) -> Tensor:
        size = features.shape[1:3]
        return F.interpolate(targets[:, None].double(), size=size, mode="nearest-exact")[:, 0].to(targets.dtype)

    def prepare(self, targets: Tensor, features: Tensor, seed: int) -> tuple[Tensor, int]:
        labelled = targets >= 0
        present, numbered = targets[labelled].unique(return_inverse=True)
        if len(present) < 2:
            got = f"only class {int(present[0])}" if len(present) else "no labelled pixel"
            raise ValueError(
                f"{WHO}: expected at least two classes in the feature map, {list(targets.shape[1:])} cells per image, "
                f"got {got}; check ignore_index (now {self.ignore_index}), or use larger images."
            )
        check_lengths(self.class_weights, len(present), "class_weights")
        return targets.masked_scatter(labelled, numbered), len(present)

    def answers(self, targets: Tensor) -> Tensor:
        cells = targets.flatten(1)
        pairs = torch.stack([torch.arange(len(cells))[:, None].expand_as(cells), cells], 2)
        return pairs[cells >= 0].unique(dim=0)

    def rows(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        labelled = targets >= 0
        return features[labelled], targets[labelled]

    def root(self, logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        return super().root(logits, targets, noise) * (targets >= 0)[..., None]

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().residual(logits, targets.clamp(min=0)) * (targets >= 0)[..., None]

    def sample(self, logits: Tensor, targets: Tensor, index: Tensor, seed: int) -> Tensor:
        return super().sample(logits, targets, index, seed).where(targets >= 0, -1)
