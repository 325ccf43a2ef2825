"""The interface of all losses: what embedding a task asks of its loss, in the order in which it asks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from ..data import Target

if TYPE_CHECKING:
    from typing_extensions import Self


class Loss(ABC):
    """What a task's targets are, how its head is fitted to them, and the model's distribution over them.

    A loss is a frozen dataclass of its options; fitting returns a new one. Logits are ``[…, C]`` float64; the leading
    axes are images and, for dense targets, the cells of a feature map.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    """What `score` measures."""
    has_classes: ClassVar[bool] = True
    """Whether targets are classes, which can be balanced."""
    curvature: ClassVar[float] = 0.05
    """Typical second derivative of a fitted head's loss in its logits, p(1 − p) for classes. It preconditions the fit:
    anything from 0.25 (an uninformed head) to 0.002 changes the number of steps by a factor of two at most."""
    max_passes: ClassVar[float] = math.inf
    """Backward passes per image that "exact" may take."""
    pool: str | None = None
    """Name of the module whose input is the feature map, for one feature vector per cell; None: one per image."""

    @property
    @abstractmethod
    def target(self) -> Target:
        """How an image's target is read from the data."""

    def options(self) -> dict[str, Any]:
        """Return the name and the options that differ from their defaults, for JSON; `loss_of` is the inverse."""
        every = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]  # all are dataclasses
        return {"name": self.name, **{key: getattr(self, key) for key in every if getattr(self, key) != every[key]}}

    # Before the fit; most losses change nothing.

    def tap(self, probe: _Probe) -> _Probe:
        """Return the probe with the features that this loss's head sees: those of `pool`."""
        return probe if probe.pool == self.pool else replace(probe, pool=self.pool)  # type: ignore[type-var]  # a dataclass

    def align(self, targets: Tensor, features: Tensor) -> Tensor:
        """Return a batch's targets at the resolution of its features."""
        return targets

    @abstractmethod
    def prepare(self, targets: Tensor, features: Tensor, seed: int) -> tuple[Tensor, int]:
        """Return the whole task's targets ``[N, …]`` as the fit takes them, and the number of outputs C.

        The features are ``[N, …, D]``; the seed is that of random choices.

        Raises:
            ValueError: If the targets are not a task.
        """

    def rows(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features ``[M, D]`` and targets ``[M, …]`` that the head is fitted to."""
        return features, targets

    def answers(self, targets: Tensor) -> Tensor:
        """Return which image gives which answer, ``[M, 2]`` int64 pairs (row of `targets`, number of the answer).

        A head that is fitted to some of the images should see every answer. Numbers have none.
        """
        return torch.empty(0, 2, dtype=torch.int64)

    # The fit.

    @abstractmethod
    def weights(self, targets: Tensor, num_outputs: int, balanced: bool) -> Tensor:
        """Return the weights of the fitted loss's terms, ``[M, 1]`` or ``[M, C]``: about 1, and 0 where missing."""

    @abstractmethod
    def objective(self, targets: Tensor, num_outputs: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return the fitted loss: logits ``[…, M, C]`` -> its terms ``[…, M, 1 or C]`` and their derivatives."""

    def fitted(self, logits: Tensor, targets: Tensor) -> Self:
        """Return the loss with the options that the fitted head determines."""
        return self

    @abstractmethod
    def nll(self, logits: Tensor, targets: Tensor) -> float:
        """Return the mean over rows of −log p(y|x), in nats."""

    @abstractmethod
    def score(self, logits: Tensor, targets: Tensor) -> float:
        """Return the head's `metric`, at most 1."""

    # The model's own distribution.

    @abstractmethod
    def root(self, logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        """Return A·noise, where AAᵀ is the Fisher information in the logits ``[B, …, C]``.

        The noise broadcasts with the logits. Of the targets, only whether they are known matters.
        """

    @abstractmethod
    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return ∂(−log p(y|x)) / ∂ logits, ``[B, …, C]``."""

    @abstractmethod
    def sample(self, logits: Tensor, targets: Tensor, index: Tensor, seed: int) -> Tensor:
        """Return targets drawn from the model, as a function of (seed, image) alone; `targets` as in `root`."""


class _Tapped(Protocol):
    """What a loss needs to know of a `Probe`."""

    @property
    def pool(self) -> str | None: ...


_Probe = TypeVar("_Probe", bound=_Tapped)
