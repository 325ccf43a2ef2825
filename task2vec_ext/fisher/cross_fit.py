"""The cross-fitted head: every image has a head that has not seen it.

A linear head memorises a few hundred images, and the Fisher information of those images then measures how well, which
depends on their number. In K folds, the head of a fold is fitted to the images of the others; no image is passed
through the probe more often.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..losses import Loss
from .folds import IN_ALL, assign_folds
from .head import Head, HeadFit, HeadSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class CrossFitHead:
    """The heads of all folds, and how well each does on the images that it has not seen.

    Args:
        whole: The head that was fitted to all images.
        folds: The head of each fold, fitted to the images of the others.
        fold: ``[n]`` int64 on the CPU, an image's fold, or `folds.IN_ALL`: its head is `whole`.
        loss: The model's distribution over the targets; what the fit determines (the noise of a regression) comes from
            images not seen.
        score: How well the heads do on images that they have not seen, at most 1; NaN if there are none.
        nll: Mean negative log-likelihood of those images, nats; NaN if there are none.
        num_in_all: How many images have no head that has not seen them.
    """

    whole: Head
    folds: tuple[Head, ...]
    fold: Tensor
    loss: Loss
    score: float
    nll: float
    num_in_all: int

    def of(self, index: Tensor) -> HeadsOfBatch:
        """Return the heads for the images of a batch, by their numbers ``[B]``."""
        return HeadsOfBatch((self.whole, *self.folds), self.fold[index.cpu()] + 1)

    def to(self, device: torch.device) -> CrossFitHead:
        """Return the heads on `device`."""
        folds = tuple(head.to(device) for head in self.folds)
        return dataclasses.replace(self, whole=self.whole.to(device), folds=folds)


class HeadsOfBatch:
    """A head for each image of a batch; the images of one head are computed together.

    Args:
        heads: All of them.
        which: ``[B]`` int64 on the CPU, the head of each image.
    """

    def __init__(self, heads: Sequence[Head], which: Tensor) -> None:
        """Sort the images by head."""
        order = which.argsort(stable=True)
        device = heads[0].weight.device
        self._order, self._place = (rows.to(device, non_blocking=True) for rows in (order, order.argsort()))
        self._sizes, self._heads = torch.bincount(which, minlength=len(heads)).tolist(), heads

    def logits(self, features: Tensor) -> Tensor:
        """Return ``[B, …, C]`` float64 for features ``[B, …, D]``."""
        return self._each(Head.logits, features)

    def pull(self, cotangents: Tensor) -> Tensor:
        """Return the gradient at the features, ``[B, …, D]`` float64, for cotangents of the logits ``[B, …, C]``."""
        return self._each(Head.pull, cotangents)

    def _each(self, apply: Callable[[Head, Tensor], Tensor], rows: Tensor) -> Tensor:
        parts = zip(self._heads, rows[self._order].split(self._sizes), strict=True)
        return torch.cat([apply(head, part) for head, part in parts if len(part)])[self._place]


def fit_cross_fit_head(
    features: Tensor,
    targets: Tensor,
    num_outputs: int,
    index: Tensor,
    loss: Loss,
    settings: HeadSettings,
    seed: int,
) -> CrossFitHead:
    """Return the heads of a task's folds.

    Args:
        features: Z, ``[N, …, D]``.
        targets: ``[N, …]``, as ``loss.prepare`` returns them.
        num_outputs: C.
        index: ``[N]``, the images' numbers in their task.
        loss: Of the targets.
        settings: Of the head; ``settings.cross_fit`` is the number of folds.
        seed: Of the folds, and of ``"adam"``.

    Returns:
        The heads, on the device of the features.

    Raises:
        ValueError: If features are not finite.
    """
    assert settings.cross_fit is not None
    fold = assign_folds(loss.answers(targets.cpu()), index, settings.cross_fit, seed)
    fit = HeadFit(features, targets, num_outputs, loss, settings, seed)
    whole = fit.head(*fit.solve())
    each = fold.to(features.device).reshape(-1, *[1] * (features.dim() - 1)).expand(*features.shape[:-1], 1)
    fold_of_row = loss.rows(each, targets)[0][:, 0]
    logits, heads = whole.logits(fit.features), [whole] * settings.cross_fit  # there may be fewer images than folds
    used = [k for k in range(settings.cross_fit) if (fold_of_row == k).any()]
    fitted = fit.solve_parts([(fold_of_row != k).nonzero().flatten() for k in used])
    for k, (weight, bias) in zip(used, fitted, strict=True):
        heads[k] = dataclasses.replace(whole, weight=weight, bias=bias)
        logits[fold_of_row == k] = heads[k].logits(fit.features[fold_of_row == k])
    unseen = fold_of_row != IN_ALL
    logits, rows = logits[unseen], fit.targets[unseen]
    judge = loss.fitted(logits, rows) if len(rows) else whole.loss
    score, nll = (judge.score(logits, rows), judge.nll(logits, rows)) if len(rows) else (torch.nan, torch.nan)
    by_image = torch.full((int(index.max()) + 1,), IN_ALL)
    by_image[index] = fold
    return CrossFitHead(whole, tuple(heads), by_image, judge, score, nll, int((fold == IN_ALL).sum()))
