"""The head: the one layer that is fitted to a task, on cached features, by a convex problem with one answer."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ._native import Task2VecWarning

HeadMethod = Literal["lbfgs", "adam"]

DEFAULT_L2 = 1e-4
"""The weight decay of the authors' released code."""

# The authors' recipe for the head of their released code.
ADAM_EPOCHS, ADAM_LEARNING_RATE, ADAM_BATCH = 10, 4e-4, 64


@dataclass(frozen=True)
class Head:
    """A fitted linear head and how well it does on the samples it was fitted on.

    Args:
        weight: W, ``[C, D]`` float64: logits in float64 keep the rounding of a confident head out of the Fisher.
        bias: b, ``[C]`` float64.
        accuracy: share of samples labelled right, in [0, 1].
        nll: mean negative log-likelihood, nats.
    """

    weight: Tensor
    bias: Tensor
    accuracy: float
    nll: float

    def logits(self, features: Tensor) -> Tensor:
        """Return ``[B, C]`` float64 for features ``[B, D]``."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)

    def to(self, device: torch.device) -> Head:
        """Return the head on `device`."""
        return Head(self.weight.to(device), self.bias.to(device), self.accuracy, self.nll)


def fit_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    method: HeadMethod = "lbfgs",
    l2: float = DEFAULT_L2,
    class_balanced: bool = False,
    seed: int = 0,
) -> Head:
    """Return the head that minimises mean cross-entropy plus ``l2/2·‖W‖²`` (the bias is free).

    Args:
        features: z, ``[N, D]``.
        labels: ``[N]`` int64 in 0…C−1.
        num_classes: C.
        method: ``"lbfgs"`` solves the convex problem to convergence in float64 (deterministic, no seed);
            ``"adam"`` is the authors' recipe (10 epochs, learning rate 4e-4, batches of 64, L2 inside the gradient).
        l2: strength of the penalty, > 0.
        class_balanced: every class weighs the same (``"adam"``: samples drawn with replacement, classes equally often).
        seed: of ``"adam"``'s initialisation and order.

    Returns:
        The head on the device of `features`; accuracy and NLL are over `features`, unweighted.

    Raises:
        ValueError: If features are not finite, `l2` is not positive, or the method is unknown.
    """
    check_head_options(method, l2)
    if not torch.isfinite(features).all():
        rows = (~torch.isfinite(features)).any(1).nonzero().flatten()
        raise ValueError(
            f"fit_head: expected finite features, got NaN or infinity for {len(rows)} pictures, the first is number {int(rows[0])}; "
            "check the probe's weights and the preprocessing."
        )
    counts = torch.bincount(labels, minlength=num_classes)
    weights = len(labels) / (num_classes * counts.double()) if class_balanced else torch.ones_like(counts).double()
    if method == "lbfgs":
        weight, bias = _fit_lbfgs(features.double(), labels, num_classes, l2, weights[labels])
    else:
        weight, bias = _fit_adam(features, labels, num_classes, l2, weights[labels] if class_balanced else None, seed)
    weight, bias = weight.double(), bias.double()
    logits = F.linear(features.double(), weight, bias)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return Head(weight, bias, float(accuracy), float(F.cross_entropy(logits, labels)))


def check_head_options(method: HeadMethod, l2: float) -> None:
    """Raise ValueError unless `fit_head` knows the method and the penalty makes the problem well-posed."""
    if method not in get_args(HeadMethod):
        raise ValueError(f"fit_head: expected method 'lbfgs' or 'adam', got {method!r}.")
    if not (l2 > 0 and math.isfinite(l2)):
        raise ValueError(f"fit_head: expected l2 > 0 (without it a separable task has no optimum), got {l2}.")


def _fit_lbfgs(z: Tensor, labels: Tensor, num_classes: int, l2: float, weights: Tensor) -> tuple[Tensor, Tensor]:
    """L-BFGS on whitened features: the problem's own curvature, bounded by its value at p = ½, is divided out.

    With Σ = EΛEᵀ the features' covariance, W = V·E(Λ/4 + l2)^(−½)Eᵀ. In V the Hessian of a soft head is near the identity; plain
    L-BFGS on W would need thousands of steps to move along directions whose curvature is l2 alone.
    """
    n = len(z)
    mean = (weights[:, None] * z).mean(0)  # the free bias absorbs the shift exactly
    centred = z - mean
    eigenvalues, basis = torch.linalg.eigh((centred * weights[:, None]).T @ centred / n)
    scale = (eigenvalues.clamp(min=0) / 4 + l2).rsqrt()
    white = centred @ basis * scale  # [N, D]
    target = F.one_hot(labels, num_classes).to(z.dtype)
    parameters = z.new_zeros(num_classes, z.shape[1] + 1, requires_grad=True)  # V, then b

    def objective() -> Tensor:
        v, bias = parameters[:, :-1], parameters[:, -1]
        with torch.no_grad():
            log_p = (white @ v.T + bias).log_softmax(1)
            residual = (log_p.exp() - target) * weights[:, None] / n
            penalty = l2 * scale**2 * v  # gradient of l2/2·‖W‖²
            parameters.grad = torch.cat([residual.T @ white + penalty, residual.sum(0)[:, None]], 1)
            return -(weights * log_p.gather(1, labels[:, None])[:, 0]).mean() + 0.5 * (penalty * v).sum()

    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=2000,
        max_eval=4000,
        tolerance_grad=1e-9,
        tolerance_change=1e-13,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(objective)  # type: ignore[arg-type]  # a Tensor is what the optimiser documents
    loss = objective()
    assert parameters.grad is not None
    # Units of the loss: what a Newton step on the near-identity Hessian could still gain.
    gap = float(parameters.grad.square().sum() / 2)
    if gap > 1e-6 * max(float(loss), 1e-6):
        warnings.warn(
            f"the head's fit stopped {gap:.1e} nats short of its optimum; a larger l2 (now {l2:g}) converges faster",
            Task2VecWarning,
            stacklevel=3,
        )
    with torch.no_grad():
        weight = parameters[:, :-1] * scale @ basis.T
        return weight, parameters[:, -1] - weight @ mean


def _fit_adam(
    z: Tensor, labels: Tensor, num_classes: int, l2: float, weights: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bound = z.shape[1] ** -0.5  # nn.Linear's own initialisation, drawn from our generator
    weight = (torch.rand(num_classes, z.shape[1], generator=generator) * 2 - 1).mul(bound).to(z).requires_grad_()
    bias = (torch.rand(num_classes, generator=generator) * 2 - 1).mul(bound).to(z).requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=ADAM_LEARNING_RATE, weight_decay=l2)
    for _ in range(ADAM_EPOCHS):
        if weights is None:
            order = torch.randperm(len(z), generator=generator)
        else:
            order = torch.multinomial(weights.cpu(), len(z), replacement=True, generator=generator)
        for rows in order.to(z.device).split(ADAM_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(F.linear(z[rows], weight, bias), labels[rows]).backward()
            optimizer.step()
    return weight.detach(), bias.detach()
