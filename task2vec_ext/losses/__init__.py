"""What a task's targets are, and the model's own distribution over them; `_base` has the table and the interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ._base import Loss, per_image
from .cross_entropy import CrossEntropy
from .dense import Dense
from .multilabel import MultiLabel
from .pseudo_labels import PseudoLabels
from .regression import Regression

LossName = Literal["cross_entropy", "multilabel", "regression", "dense"]
_LOSSES: tuple[type[Loss], ...] = (CrossEntropy, MultiLabel, Regression, Dense)

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
]


def as_loss(loss: LossName | Loss) -> Loss:
    """Return the loss of a name, with its default options, or the loss itself.

    Args:
        loss: A name, or a loss such as ``Regression(noise="residual")``.

    Returns:
        The loss.

    Raises:
        ValueError: If there is no loss of that name.
        TypeError: If it is neither.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise TypeError(
            f"fisher_embed: expected loss as a name or a Loss, got {loss!r}; pass Regression(), not the class."
        )
    for kind in _LOSSES:
        if kind.name == loss:
            return kind()
    raise ValueError(
        f"fisher_embed: expected loss to be one of {', '.join(kind.name for kind in _LOSSES)}; got {loss!r}."
    )


def loss_of(options: Mapping[str, Any]) -> Loss:
    """Return the loss that `Loss.options` described.

    Args:
        options: Its name, and the options that are not the default.

    Returns:
        The loss.
    """
    kinds: dict[str, type[Loss]] = {kind.name: kind for kind in _LOSSES} | {PseudoLabels.name: PseudoLabels}
    return kinds[options["name"]](**{key: value for key, value in options.items() if key != "name"})
