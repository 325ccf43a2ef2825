"""The head: the linear layer that is fitted to a task on cached features, a convex problem with one solution."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .._util.numbers import whole
from .._util.warnings import Task2VecWarning
from ..losses import CrossEntropy, Loss
from ..words import HeadMethod

RELATIVE_L2 = 0.1
"""Default penalty of the convex fit, in units of the features' mean variance: a probe with features of another scale
gets the same head. Near the held-out optimum of real tasks on three probes; see docs/how_many_images.md."""

ADAM_L2 = 1e-4
"""Default penalty of ``"adam"``: the weight decay of the authors' code, which stops long before the optimum."""

DEFAULT_FOLDS = 5
"""Folds of `HeadSettings.cross_fit`."""

_SCALE = 1e8
"""The objective is multiplied by this: torch's L-BFGS forgets curvature pairs below an absolute 1e-10 and would
stall."""

_LOGITS = 2**24
"""Logits (128 MB) of the fits that are solved together."""

# The authors' recipe for the head of their released code.
ADAM_EPOCHS, ADAM_LEARNING_RATE, ADAM_BATCH = 10, 4e-4, 64


@dataclass(frozen=True)
class HeadSettings:
    """How the head is fitted.

    Args:
        method: ``"lbfgs"`` solves the convex problem to convergence; ``"adam"`` is the authors' recipe.
        l2: Strength of the L2 penalty, > 0; default for ``"lbfgs"``: 0.1 times the mean variance of the task's
            features; for ``"adam"``: the authors' 1e-4.
        class_balanced: Every class has the same weight in the fit, and a draw of ``num_samples`` takes equally many
            images of each class, as far as there are enough.
        cross_fit: Number of folds, >= 2: the Fisher of an image is taken under a head that was fitted to the other
            folds and has not seen it. None: under the head of all images, as in the paper; it memorises a few hundred
            images, and the Fisher then depends on how many there are. Always None for the ``"variational"`` estimator.

    Raises:
        ValueError: If the method is unknown, the penalty not positive, or there are too few folds.
        TypeError: If the number of folds is not whole.
    """

    method: HeadMethod = "lbfgs"
    l2: float | None = None
    class_balanced: bool = False
    cross_fit: int | None = DEFAULT_FOLDS

    def __post_init__(self) -> None:
        """Check the values."""
        if self.method not in get_args(HeadMethod):
            raise ValueError(f"HeadSettings: expected method 'lbfgs' or 'adam', got {self.method!r}.")
        if self.l2 is None and self.method == "adam":
            object.__setattr__(self, "l2", ADAM_L2)
        if self.l2 is not None and not (self.l2 > 0 and math.isfinite(self.l2)):
            raise ValueError(
                f"HeadSettings: expected l2 > 0 (without it a separable task has no optimum), got {self.l2}."
            )
        if self.cross_fit is not None:
            object.__setattr__(self, "cross_fit", whole("HeadSettings", "cross_fit", self.cross_fit, 2))

    def check(self, loss: Loss) -> None:
        """Raise unless a head can be fitted so.

        Args:
            loss: Of the targets.

        Raises:
            ValueError: If classes are to be balanced where the loss has none, or has weights for them already.
            NotImplementedError: If ``"adam"`` is to fit anything but plain cross-entropy.
        """
        if self.method == "adam" and loss != CrossEntropy():
            raise NotImplementedError(
                f"HeadSettings: method 'adam' is the authors' recipe for plain cross-entropy, got {loss}; use 'lbfgs'."
            )
        if self.class_balanced and not loss.has_classes:
            raise ValueError(f"HeadSettings: expected class_balanced with classes, got loss {loss.name!r}; drop it.")
        if self.class_balanced and getattr(loss, "class_weights", None) is not None:
            raise ValueError("HeadSettings: expected either class_balanced or class_weights, got both; drop one.")

    def penalty(self, features: Tensor) -> float:
        """Return the L2 penalty of a fit to features ``[M, D]``."""
        if self.l2 is not None:
            return self.l2
        variance = float(features.double().var(0, unbiased=False).mean())
        return RELATIVE_L2 * max(variance, torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Head:
    """A fitted linear head, and how well it does on the images it was fitted to.

    Args:
        weight: W, ``[C, D]`` float64, so that the rounding of a confident head's logits does not reach the Fisher.
        bias: ``[C]`` float64.
        score: How well it does, at most 1; ``loss.metric`` says in which measure.
        nll: Mean negative log-likelihood, nats.
        loss: The model's distribution over the targets.
    """

    weight: Tensor
    bias: Tensor
    score: float
    nll: float
    loss: Loss = CrossEntropy()  # noqa: RUF009 - frozen

    def logits(self, features: Tensor) -> Tensor:
        """Return ``[B, …, C]`` float64 for features ``[B, …, D]``."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)

    def pull(self, cotangents: Tensor) -> Tensor:
        """Return the gradient at the features, ``[B, …, D]`` float64, for cotangents of the logits ``[B, …, C]``."""
        return cotangents @ self.weight

    def of(self, index: Tensor) -> Head:
        """Return the head for the images of a batch ``[B]``: this one for all of them."""
        return self

    def to(self, device: torch.device) -> Head:
        """Return the head on `device`."""
        return dataclasses.replace(self, weight=self.weight.to(device), bias=self.bias.to(device))


def fit_head(
    features: Tensor,
    targets: Tensor,
    num_outputs: int,
    *,
    loss: Loss = CrossEntropy(),  # noqa: B008 - frozen
    method: HeadMethod = "lbfgs",
    l2: float | None = None,
    class_balanced: bool = False,
    seed: int = 0,
) -> Head:
    """Return the head that minimises the mean loss plus ``l2/2·‖W‖²`` (the bias is free).

    Args:
        features: Z, ``[N, D]``; ``[N, …, D]`` where every image has many.
        targets: What ``loss.prepare`` returns: ``[N]`` int64 in 0…C−1 for cross-entropy.
        num_outputs: C.
        loss: Of the targets.
        method: ``"lbfgs"`` solves the convex problem to convergence in float64 (deterministic, no seed);
            ``"adam"`` is the authors' recipe (10 epochs, learning rate 4e-4, batches of 64, L2 inside the gradient).
        l2: See `HeadSettings`.
        class_balanced: Every class weighs the same (``"adam"``: images drawn with replacement, classes equally often).
        seed: Of ``"adam"``'s initialisation and order.

    Returns:
        The head on the device of `features`; score and NLL are over `features`, unweighted.

    Raises:
        ValueError: If features are not finite, or options are out of range or exclude each other.
        NotImplementedError: If ``"adam"`` is to fit anything but plain cross-entropy.
    """
    settings = HeadSettings(method, l2, class_balanced)
    fit = HeadFit(features, targets, num_outputs, loss, settings, seed)
    return fit.head(*fit.solve())


class HeadFit:
    """The fit of a head to a task, prepared once: to all images, or to some of them.

    Args:
        features: As for `fit_head`, and so are the others.
        targets: Of the features.
        num_outputs: C.
        loss: Of the targets.
        settings: Method, penalty and balance.
        seed: Of ``"adam"``.

    Raises:
        ValueError: If features are not finite, or options are out of range or exclude each other.
        NotImplementedError: If ``"adam"`` is to fit anything but plain cross-entropy.
    """

    def __init__(
        self, features: Tensor, targets: Tensor, num_outputs: int, loss: Loss, settings: HeadSettings, seed: int
    ) -> None:
        """Check features and options; whiten the features."""
        settings.check(loss)
        if not torch.isfinite(features).all():
            rows = (~torch.isfinite(features)).flatten(1).any(1).nonzero().flatten()
            raise ValueError(
                f"fit_head: expected finite features, got NaN or infinity for {len(rows)} images, the first is number "
                f"{int(rows[0])}; check the probe's weights and the preprocessing."
            )
        self.features, self.targets = loss.rows(features, targets)
        self.num_outputs, self.loss, self.settings, self.seed = num_outputs, loss, settings, seed
        self._convex: _Convex | None = None
        if settings.method == "lbfgs":
            weights = self.weights(slice(None)).mean(1, keepdim=True)
            terms = loss.objective(self.targets, num_outputs)
            self._convex = _Convex(
                self.features.double(), weights, num_outputs, terms, loss.curvature, settings.penalty(self.features)
            )

    def weights(self, rows: Tensor | slice) -> Tensor:
        """Return the weights of the terms of some rows' loss."""
        return self.loss.weights(self.targets[rows], self.num_outputs, self.settings.class_balanced)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return W ``[C, D]`` and b ``[C]`` float64, fitted to all rows."""
        if self._convex is None:
            return self._adam(slice(None))
        ((weight, bias),) = self._convex.solve(self.weights(slice(None))[None], keep=True)
        return weight, bias

    def solve_parts(self, parts: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return W and b for each of several sets of rows ``[M]``; after `solve`, convex fits begin at its solution."""
        if self._convex is None:
            return [self._adam(rows) for rows in parts]
        weights = []
        for rows in parts:
            own = self.weights(rows)
            whole = own.new_zeros(len(self.targets), own.shape[1])
            whole[rows] = own * (len(self.targets) / len(rows))
            weights.append(whole)
        at_once = max(1, _LOGITS // (len(self.targets) * self.num_outputs))
        chunks = [torch.stack(weights[i : i + at_once]) for i in range(0, len(weights), at_once)]
        return [found for chunk in chunks for found in self._convex.solve(chunk)]

    def _adam(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        weights = self.weights(rows)[:, 0] if self.settings.class_balanced else None
        l2 = self.settings.penalty(self.features)
        weight, bias = _fit_adam(self.features[rows], self.targets[rows], self.num_outputs, l2, weights, self.seed)
        return weight.double(), bias.double()

    def head(self, weight: Tensor, bias: Tensor) -> Head:
        """Return the head of W and b, with its score and NLL over all rows, unweighted."""
        logits = F.linear(self.features.double(), weight, bias)
        loss = self.loss.fitted(logits, self.targets)
        return Head(weight, bias, loss.score(logits, self.targets), loss.nll(logits, self.targets), loss)


class _LBFGS(torch.optim.LBFGS):
    """torch's, which would import torch's compiler, for a second, only to keep it away from this method."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)


class _Convex:
    """L-BFGS on whitened features: the problem's own curvature, guessed from the features' covariance, is divided out.

    With Σ = EΛEᵀ the features' covariance and h = ``loss.curvature``, W = V·E(hΛ + l2)^(−½). In V the Hessian is near
    the identity; plain L-BFGS on W would need thousands of steps to move along directions whose curvature is l2 alone.
    Directions in which the features do not vary carry no weight at the optimum and are left out.
    """

    def __init__(
        self,
        z: Tensor,  # [N, D] float64
        row_weights: Tensor,  # [N, 1]
        num_outputs: int,
        terms: Callable[[Tensor], tuple[Tensor, Tensor]],
        curvature: float,
        l2: float,
    ) -> None:
        self.terms, self.l2 = terms, l2
        self.mean = (row_weights * z).mean(0)  # the free bias absorbs the shift exactly
        centred = z - self.mean
        eigenvalues, basis = torch.linalg.eigh((centred * row_weights).T @ centred / len(z))
        alive = eigenvalues > 1e-14 * eigenvalues[-1].clamp(min=torch.finfo(z.dtype).tiny)
        self.scale = (curvature * eigenvalues[alive] + l2).rsqrt()
        self.whiten = basis[:, alive] * self.scale
        self.white = centred @ self.whiten  # [N, rank]
        self.start = z.new_zeros(num_outputs, len(self.scale) + 1)  # V, then b

    def solve(self, weights: Tensor, *, keep: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Return W and b of F fits, which differ in the weights of the rows: ``[F, N, 1]`` or ``[F, N, C]``.

        They are one problem for L-BFGS: its steps cost little more for several fits than for one. To keep the solution
        makes it the start of later fits.
        """
        n, outputs = len(self.white), len(self.start)
        white, scale, l2 = self.white, self.scale, self.l2
        parameters = self.start.expand(len(weights), -1, -1).clone().requires_grad_()

        def objective() -> Tensor:
            with torch.no_grad():
                v, bias = parameters[..., :-1], parameters[..., -1]
                logits = white @ v.flatten(0, 1).T + bias.flatten()  # [N, F·C]
                losses, residual = self.terms(logits.view(n, -1, outputs).transpose(0, 1))  # [F, N, …]
                residual = residual * weights / n
                penalty = l2 * scale**2 * v  # gradient of l2/2·‖W‖²
                at_white = (residual.transpose(0, 1).flatten(1).T @ white).view_as(v)
                parameters.grad = torch.cat([at_white + penalty, residual.sum(1)[..., None]], -1).mul_(_SCALE)
                return ((weights * losses).sum() / n + 0.5 * (penalty * v).sum()) * _SCALE

        optimizer: torch.optim.LBFGS = _LBFGS(
            [parameters],
            max_iter=4000,
            max_eval=8000,
            tolerance_grad=1e-9 * _SCALE,
            tolerance_change=0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(objective)
        reached = float(objective()) / _SCALE
        assert parameters.grad is not None
        # What is left to gain is at most ‖gradient‖² / 2μ, μ the least curvature: that of the penalty alone.
        least = 2 * l2 * float(scale.square().min()) if len(scale) else 1.0  # of constant features, the bias alone
        gap = float((parameters.grad / _SCALE).square().sum()) / least
        if gap > 1e-6 * max(reached, 1e-6):
            warnings.warn(
                f"the head's fit stopped up to {gap:.1e} nats short of its optimum; a larger l2 (now {l2:g}) converges "
                "faster",
                Task2VecWarning,
                stacklevel=4,
            )
        with torch.no_grad():
            weight = parameters[..., :-1] @ self.whiten.T
            bias = parameters[..., -1] - weight @ self.mean
            if keep:
                self.start = parameters[0].detach()
            return list(zip(weight, bias, strict=True))


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
            with torch.autocast(z.device.type, enabled=False):  # of the caller's
                F.cross_entropy(F.linear(z[rows], weight, bias), labels[rows]).backward()
            optimizer.step()
    return weight.detach(), bias.detach()
