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

DEFAULT_L2: dict[HeadMethod, float] = {"lbfgs": 1e-2, "adam": 1e-4}
"""Adam's is the weight decay of the authors' released code, which stops long before the optimum. The convex fit goes
all the way, and the embedding hardly depends on where that is: over 37 real tasks of 100 pictures (ResNet-18) a task's
nearest neighbour was of its own domain for 70 % with 1e-4, 1e-3 and 1e-2, for 73 % with 1e-1. 1e-2 gives confident
heads (0.01–0.1 nats) in a fifth of the steps of 1e-4."""

_CURVATURE = 0.05
"""Typical p(1 − p) of a fitted head: the share of the features' covariance that the preconditioner expects as
curvature. Between 0.25 (a head that knows nothing) and 0.002 the number of steps changes by a factor of two at most;
this is in the middle."""

_SCALE = 1e8
"""The objective is multiplied by this: torch's L-BFGS forgets curvature pairs below an absolute 1e-10 and would
stall."""

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
    l2: float | None = None,
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
        l2: strength of the penalty, > 0; default: `DEFAULT_L2` of the method.
        class_balanced: every class weighs the same (``"adam"``: samples drawn with replacement, classes equally often).
        seed: of ``"adam"``'s initialisation and order.

    Returns:
        The head on the device of `features`; accuracy and NLL are over `features`, unweighted.

    Raises:
        ValueError: If features are not finite, `l2` is not positive, or the method is unknown.
    """
    l2 = head_l2(method, l2)
    if not torch.isfinite(features).all():
        rows = (~torch.isfinite(features)).any(1).nonzero().flatten()
        raise ValueError(
            f"fit_head: expected finite features, got NaN or infinity for {len(rows)} pictures, the first is number "
            f"{int(rows[0])}; check the probe's weights and the preprocessing."
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


def head_l2(method: HeadMethod, l2: float | None) -> float:
    """Return the penalty `fit_head` will use.

    Args:
        method: ``"lbfgs"`` or ``"adam"``.
        l2: as given, None for the method's default.

    Returns:
        A positive number.

    Raises:
        ValueError: If the method is unknown or the penalty not positive.
    """
    if method not in get_args(HeadMethod):
        raise ValueError(f"fit_head: expected method 'lbfgs' or 'adam', got {method!r}.")
    if l2 is None:
        return DEFAULT_L2[method]
    if not (l2 > 0 and math.isfinite(l2)):
        raise ValueError(f"fit_head: expected l2 > 0 (without it a separable task has no optimum), got {l2}.")
    return l2


def _fit_lbfgs(z: Tensor, labels: Tensor, num_classes: int, l2: float, weights: Tensor) -> tuple[Tensor, Tensor]:
    """L-BFGS on whitened features: the problem's own curvature, guessed from the features' covariance, is divided out.

    With Σ = EΛEᵀ the features' covariance and h = `_CURVATURE`, W = V·E(hΛ + l2)^(−½). In V the Hessian is near the
    identity; plain L-BFGS on W would need thousands of steps to move along directions whose curvature is l2 alone.
    Directions in which the features do not vary carry no weight at the optimum and are left out.
    """
    n = len(z)
    mean = (weights[:, None] * z).mean(0)  # the free bias absorbs the shift exactly
    centred = z - mean
    eigenvalues, basis = torch.linalg.eigh((centred * weights[:, None]).T @ centred / n)
    alive = eigenvalues > 1e-14 * eigenvalues[-1].clamp(min=torch.finfo(z.dtype).tiny)
    scale = (_CURVATURE * eigenvalues[alive] + l2).rsqrt()
    whiten = basis[:, alive] * scale
    white = centred @ whiten  # [N, rank]
    target = F.one_hot(labels, num_classes).to(z.dtype)
    parameters = z.new_zeros(num_classes, len(scale) + 1, requires_grad=True)  # V, then b

    def objective() -> Tensor:
        with torch.no_grad():
            v, bias = parameters[:, :-1], parameters[:, -1]
            log_p = (white @ v.T + bias).log_softmax(1)
            residual = (log_p.exp() - target) * weights[:, None] / n
            penalty = l2 * scale**2 * v  # gradient of l2/2·‖W‖²
            parameters.grad = torch.cat([residual.T @ white + penalty, residual.sum(0)[:, None]], 1).mul_(_SCALE)
            loss = -(weights * log_p.gather(1, labels[:, None])[:, 0]).mean() + 0.5 * (penalty * v).sum()
            return loss * _SCALE

    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=4000,
        max_eval=8000,
        tolerance_grad=1e-9 * _SCALE,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(objective)
    loss = float(objective()) / _SCALE
    assert parameters.grad is not None
    # What is left to gain is at most ‖gradient‖² / 2μ, μ the least curvature: that of the penalty alone.
    gap = float((parameters.grad / _SCALE).square().sum() / (2 * l2 * scale.square().min()))
    if gap > 1e-6 * max(loss, 1e-6):
        warnings.warn(
            f"the head's fit stopped up to {gap:.1e} nats short of its optimum; a larger l2 (now {l2:g}) converges "
            "faster",
            Task2VecWarning,
            stacklevel=3,
        )
    with torch.no_grad():
        weight = parameters[:, :-1] @ whiten.T
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
