"""Real numbers per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..data import Target, Values
from ._common import WHO, check_lengths, check_some, checked_numbers, per_image
from .loss import Loss


@dataclass(frozen=True)
class Regression(Loss):
    """K numbers per image, Gaussian around the head's prediction.

    Targets are standardised over the task, so that neither the fit nor the Fisher information depends on their units.
    The Fisher information needs the Gaussian's standard deviation σ_k, a modelling choice:

    - ``"spread"`` (default): the target's own standard deviation. The Fisher information is bounded and comparable
      between tasks: how strongly the prediction, in units of the target's spread, depends on the probe.
    - ``"residual"``: the head's root mean square error on the images it was fitted to (maximum likelihood). A precisely
      predicted target gets the weight 1/σ_k², which has no bound where there are more features than images.

    Args:
        noise: One of these, or K standard deviations in units of the targets' spread.
    """

    name = "regression"
    metric = "R²"
    has_classes = False
    curvature = 1.0  # exactly: the whitened problem has the identity as its Hessian, and the first step solves it

    noise: Literal["spread", "residual"] | tuple[float, ...] = "spread"

    def __post_init__(self) -> None:
        """Check the options."""
        if self.noise not in ("spread", "residual"):
            if isinstance(self.noise, str):
                raise ValueError(f"{WHO}: expected noise 'spread', 'residual' or K numbers, got {self.noise!r}.")
            object.__setattr__(self, "noise", checked_numbers(self.noise, "noise"))

    @property
    def target(self) -> Target:
        return Values()

    def prepare(self, targets: Tensor, features: Tensor, seed: int) -> tuple[Tensor, int]:
        check_some(targets)
        if not isinstance(self.noise, str):
            check_lengths(self.noise, targets.shape[1], "noise")
        centred = targets - targets.mean(0)
        spread = centred.square().mean(0).sqrt()
        constant = spread <= 1e-12 * targets.abs().amax(0)
        if constant.any():
            k = int(constant.nonzero()[0])
            raise ValueError(
                f"{WHO}: expected targets that vary, got target {k} is {float(targets[0, k]):g} for every image "
                f"({int(constant.sum())} such of {len(constant)}); leave it out."
            )
        return centred / spread, targets.shape[1]

    def weights(self, targets: Tensor, num_outputs: int, balanced: bool) -> Tensor:
        return torch.ones_like(targets[:, :1])

    def objective(self, targets: Tensor, num_outputs: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda logits: ((logits - targets).square() / 2, logits - targets)

    def fitted(self, logits: Tensor, targets: Tensor) -> Regression:
        """Return the loss with its noise as numbers; raise if that is to be the head's error, and it has none."""
        if self.noise == "spread":
            return replace(self, noise=(1.0,) * targets.shape[1])
        if self.noise != "residual":
            return self
        error = (logits - targets).square().mean(0).sqrt()
        if (error < 1e-6).any():
            raise ValueError(
                f"{WHO}: expected a head with an error for noise='residual', got {float(error.min()):.1e} of the "
                "target's spread; pass noise='spread', HeadSettings with a larger l2, or more images."
            )
        return replace(self, noise=tuple(error.tolist()))

    def _sigma(self, like: Tensor) -> Tensor:
        assert not isinstance(self.noise, str)  # the fit has replaced it
        return torch.tensor(self.noise, dtype=torch.float64).to(like.device, non_blocking=True)

    def nll(self, logits: Tensor, targets: Tensor) -> float:
        sigma = self._sigma(logits)
        terms = ((logits - targets) / sigma).square() / 2 + sigma.log() + math.log(2 * math.pi) / 2
        return float(terms.sum(1).mean())

    def score(self, logits: Tensor, targets: Tensor) -> float:
        explained = 1 - (logits - targets).square().sum(0) / (targets - targets.mean(0)).square().sum(0)
        return float(explained.mean())

    def root(self, logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        return (noise.to(logits.double()) / self._sigma(logits)).expand(logits.shape)

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.double() - targets) / self._sigma(logits).square()

    def sample(self, logits: Tensor, targets: Tensor, index: Tensor, seed: int) -> Tensor:
        normal = per_image(index, seed, lambda random: random.standard_normal(logits.shape[1:]), logits.device)
        return logits.double() + self._sigma(logits) * normal
