"""Losses: what a task's targets are, the model's own distribution over them, and how its head is fitted.

The Fisher asks a loss for one thing: a root A of the covariance of ``∂ log p(y|x) / ∂ logits`` under the model's own
distribution, ``AAᵀ = E_y[∇ log p ∇ log pᵀ]``. Its columns are the exact cotangents; ``Aε`` with random signs ε has the
same second moment from one backward pass.

| loss | targets of an image | p(y given x) | A |
|---|---|---|---|
| `CrossEntropy` | a class | softmax | diag(√p) − p√pᵀ |
| `MultiLabel` | any of C labels; missing ones allowed | C independent Bernoullis | diag(√(p(1−p))) |
| `Regression` | K numbers | Gaussian, variance σ_k² | diag(1/σ) |
| `Dense` (dense.py) | a class for every pixel | softmax in every cell of the feature map | a block a labelled cell |
| `PseudoLabels` (pseudo_labels.py) | none | softmax over k-means clusters | as `CrossEntropy` |

**Class weights, label smoothing and class balance act on the head's fit alone.** They choose which model describes the
task; the Fisher is that model's own, under its own distribution.

Source:
    Achille et al. 2019, §2; Martens, Sutskever, Swersky, ICML 2012 (random signs: curvature propagation).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

    from ..data import Target
    from ..probe.probe import Probe

WHO = "fisher_embed"


class Loss(ABC):
    """What the targets are and how the model speaks of them. Stateless: a fit returns a new one.

    Logits are ``[…, C]`` float64; the leading axes are images, and cells of a feature map where there are any.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    """What `score` measures."""
    has_classes: ClassVar[bool] = True
    """Whether targets are classes, which can be balanced."""
    curvature: ClassVar[float] = 0.05
    """Typical second derivative of the loss of a fitted head in its logits; p(1 − p) of classes. It preconditions the
    head's fit. Between 0.25 (a head that knows nothing) and 0.002 the number of steps changes by a factor of two at
    most; this is in the middle."""
    max_passes: ClassVar[float] = math.inf
    """Backward passes an image that "exact" may take."""

    @property
    @abstractmethod
    def target(self) -> Target:
        """How an image's target is read from the data."""

    def options(self) -> dict[str, Any]:
        """Return the name and the options that are not the default, for the recipe."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # all are dataclasses
        return {"name": self.name, **{key: value for key, value in given.items() if value != _default(self, key)}}

    # What a task goes through before the fit; most losses leave things as they are.

    def tap(self, probe: Probe) -> Probe:
        """Return the probe with the features that this loss's head sees."""
        return probe if probe.pool is None else replace(probe, pool=None)

    def align(self, targets: Tensor, features: Tensor) -> Tensor:
        """Return a batch's targets at the resolution of its features."""
        return targets

    @abstractmethod
    def prepare(self, targets: Tensor, features: Tensor, seed: int) -> tuple[Tensor, int]:
        """Return the targets of the whole task as the fit takes them, and C, the number of outputs.

        Args:
            targets: ``[N, …]``, as read.
            features: ``[N, …, D]``.
            seed: Of random choices.

        Raises:
            ValueError: If they are no task.
        """

    def rows(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a head is fitted to: features ``[M, D]`` and their targets ``[M, …]``."""
        return features, targets

    # The fit.

    @abstractmethod
    def weights(self, targets: Tensor, num_outputs: int, balanced: bool) -> Tensor:
        """Return what each term of the fitted loss weighs, ``[M, 1]`` or ``[M, C]``, around 1; 0 where missing."""

    @abstractmethod
    def objective(self, targets: Tensor, num_outputs: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return the fitted loss: logits to its terms ``[M, 1]`` or ``[M, C]`` and their derivatives ``[M, C]``."""

    def fitted(self, logits: Tensor, targets: Tensor) -> Self:
        """Return the loss with what only a fitted head tells."""
        return self

    @abstractmethod
    def nll(self, logits: Tensor, targets: Tensor) -> float:
        """Return the mean over rows of −log p(y|x), nats."""

    @abstractmethod
    def score(self, logits: Tensor, targets: Tensor) -> float:
        """Return how well the head does, at most 1: `metric`."""

    # The model's own distribution.

    @abstractmethod
    def root(self, logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        """Return A·noise with AAᵀ the Fisher in the logits.

        Args:
            logits: ``[B, …, C]``.
            targets: Which of them exist matters, not what they are.
            noise: Broadcasts with `logits`.
        """

    @abstractmethod
    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return ∂(−log p(y|x)) / ∂ logits, ``[B, …, C]``."""

    @abstractmethod
    def sample(self, logits: Tensor, targets: Tensor, index: Tensor, seed: int) -> Tensor:
        """Return targets drawn from the model, a function of (seed, image) alone; `targets` as in `root`."""


def _default(loss: Loss, key: str) -> Any:
    return next(field.default for field in fields(loss) if field.name == key)  # type: ignore[arg-type]  # as above


def per_image(index: Tensor, seed: int, draw: Callable[[np.random.Generator], np.ndarray[Any, Any]]) -> Tensor:
    """Return random numbers image by image, each from a counter-based generator keyed by (seed, image).

    Args:
        index: ``[B]``, the images' numbers.
        seed: Of all of them.
        draw: One image's.

    Returns:
        ``[B, …]``.
    """
    rows = [draw(np.random.Generator(np.random.Philox(key=[seed, int(i)]))) for i in index]
    return torch.from_numpy(np.stack(rows))


def check_some(targets: Tensor) -> None:
    """Raise if there are no targets.

    Args:
        targets: ``[N, …]``.

    Raises:
        ValueError: If N is 0.
    """
    if len(targets) == 0:
        raise ValueError(f"{WHO}: expected a task with images, got an empty one; check its path or filter.")


def checked_numbers(values: Iterable[float] | None, what: str) -> tuple[float, ...] | None:
    """Return an option as a tuple of positive numbers, or None where it is not given.

    Args:
        values: The option's value.
        what: Its name.

    Returns:
        The tuple.

    Raises:
        ValueError: If there is none, or one is not positive and finite.
    """
    if values is None:
        return None
    numbers = tuple(float(value) for value in values)
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{WHO}: expected {what} as positive numbers, got {numbers}.")
    return numbers


def check_lengths(values: tuple[float, ...] | None, num_outputs: int, what: str) -> None:
    """Raise unless an option has one number for every output.

    Args:
        values: The option's value, or None where it is not given.
        num_outputs: C.
        what: Its name.

    Raises:
        ValueError: If their number differs.
    """
    if values is not None and len(values) != num_outputs:
        raise ValueError(f"{WHO}: expected {what} of {num_outputs} numbers, got {len(values)}.")


def check_smoothing(value: float) -> None:
    """Raise unless the option ``label_smoothing`` is in [0, 1).

    Args:
        value: Of the option.

    Raises:
        ValueError: If it is not.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{WHO}: expected label_smoothing in [0, 1), got {value}.")
