"""The robust (variational) Fisher: the largest noise on the weights that leaves the loss of the task nearly unchanged.

**Objective.** Weights w ∼ N(ŵ, σ²), one variance σ_o² a filter, minimised over the variances and the head:

    J = E_w[mean cross-entropy] + κ·Σ_o P_o·(λ²σ_o² − 1 − log(λ²σ_o²)),        λ² the prior's precision, one a layer

- objective ``"paper"``: J·N is the paper's L(ŵ;Λ) = E[H] + β·KL(N(0,Λ)‖N(0,λ²I)) with H summed over N images and KL =
  ½Σ(λ²/Λ − 1 − log(λ²/Λ)), so **κ = β/2N**; λ² is fixed, 1/mean(w²) of the layer.
- objective ``"authors"``: their code's mean cross-entropy + β·2KL(N(ŵ,σ²)‖N(0,1/λ²)), so **κ = β**; λ² is learned, and
  an output's variance is σ²·Σ(x² + 0.01). That KL also has λ²‖ŵ‖², which no σ feels and which keeps λ² where the
  weights are: at the optimum 1/λ² = mean(w² + σ²) of the layer.

**What the optimum says.** To second order E_w[mean H] = H(ŵ) + ½Σ_o P_o·F_o·σ_o², so ∂J/∂σ_o² = 0 reads ½F = κ(1/σ² −
λ²):

    F = 2κ·(precision − λ²),        precision = 1/σ²

that is F = (β/N)(Λ − λ²) for the paper (which prints β/2N: it leaves out the ½ of the Taylor term) and F =
2β(precision − λ²) for the authors. 2κ is the c of the closed form ``precision = F/c + λ²``.

**Which noise.** ``noise="weights"`` draws w once a batch: the expectation above; a filter's gradient is summed over
positions, then squared, (Σ_q …)². ``noise="activations"``, the paper's local reparameterisation, adds to every output
the noise it would have if every position had weights of its own: the same variance at each position, no correlation
between them. It estimates Σ_q(…)², the Fisher of a filter that is not shared between positions: smaller where the
gradients of different positions agree. Its gradients vary far less from batch to batch.

Source:
    Achille et al. 2019 (arXiv 1902.03545), §3; Kingma, Salimans, Welling 2015 (arXiv 1506.02557).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._util.later import later
from ..kernels.noise import local_noise, weight_noise
from ..probe.folding import FoldedProbe
from ..probe.probe import frozen
from ..probe.usable import check_eval
from ..probe.watch import BatchNormUse, ConvUse, Use, Watch
from ..words import Noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..data import Batch
    from ..probe.layers import Layer
    from ..probe.probe import Probe
    from .head import Head

Objective = Literal["paper", "authors"]

DEFAULT_KAPPA = 1e-7
"""κ where no β is given: the authors' β."""
_EPSILON = {"paper": 0.0, "authors": 0.01}
"""What the square of every input is raised by in the variance of ``noise="activations"``."""
_HEAD_RATE = {"paper": 1e-4, "authors": 5e-4}
_START = 0.05
"""Variance of the noise at the start, in units of the variance of a filter's own weights (the authors')."""


@dataclass(frozen=True)
class VariationalSettings:
    """How the robust Fisher is fitted.

    Args:
        objective: ``"paper"`` or ``"authors"``: see the module docstring.
        beta: Weight of the KL term; default: the β with κ = 1e-7, which is 1e-7 for ``"authors"`` and 2e-7·N for
            ``"paper"``.
        noise: ``"activations"`` or ``"weights"``.
        epochs: Passes of `epoch_samples` images each; the paper has 2, after which a ResNet-18's variances on a real
            task have not converged (benchmarks/robust_fisher.py).
        epoch_samples: Images per epoch, drawn with replacement, every class equally often.
        learning_rate: Adam's learning rate for the log-variances.
        head_learning_rate: Adam's learning rate for the head; default: 1e-4 for ``"paper"``, 5e-4 for ``"authors"``.

    Raises:
        ValueError: If a value is unknown or out of range.
    """

    objective: Objective = "paper"
    beta: float | None = None
    noise: Noise = "activations"
    epochs: int = 4
    epoch_samples: int = 10_000
    learning_rate: float = 1e-2
    head_learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, known in (("objective", get_args(Objective)), ("noise", get_args(Noise))):
            if getattr(self, name) not in known:
                wanted = " or ".join(map(repr, known))
                raise ValueError(f"VariationalSettings: expected {name} {wanted}, got {getattr(self, name)!r}.")
        for name in ("beta", "learning_rate", "head_learning_rate"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"VariationalSettings: expected {name} > 0, got {value!r}.")
        for name in ("epochs", "epoch_samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"VariationalSettings: expected {name} as a whole number >= 1, got {value!r}.")

    def epochs_of(self, labels: Tensor, seed: int) -> Iterator[Tensor]:
        """Yield which images to take, ``[epoch_samples]`` int64 an epoch: with replacement, classes equally often.

        Args:
            labels: ``[N]`` int64 in 0…C−1, each of them at least once.
            seed: Of the draws.
        """
        counts = torch.bincount(labels)
        by_class, start = labels.argsort(stable=True), counts.cumsum(0) - counts
        for epoch in range(self.epochs):
            random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
            chosen = torch.from_numpy(random.integers(len(counts), size=self.epoch_samples))
            place = torch.from_numpy(random.random(self.epoch_samples)) * counts[chosen]
            yield by_class[start[chosen] + place.long()]

    def kappa(self, images: int) -> float:
        """κ, the weight of the KL term for a task of so many images, nats."""
        if self.beta is None:
            return DEFAULT_KAPPA
        return self.beta if self.objective == "authors" else self.beta / (2 * images)


@dataclass(frozen=True)
class RobustFisher:
    """What `variational_epochs` has found; tensors are ``[K]`` float64, a number a filter."""

    fisher: Tensor  # F, nats² per weight²; 0 where the noise grew beyond the prior's
    log_variance: Tensor  # log σ²
    prior_precision: Tensor  # λ²
    kappa: float  # κ, nats
    nll: tuple[float, ...]  # mean cross-entropy under noise of each epoch, nats

    @property
    def prior(self) -> Tensor:
        """The trivial embedding 2κλ², ``[K]``, in the unit of `fisher`."""
        return 2 * self.kappa * self.prior_precision


def check_layers(layers: Sequence[Layer]) -> None:
    """Raise ValueError unless every filter is a convolution's or Linear layer's, with weights that have a variance."""
    for layer in layers:
        if layer.kind == "batchnorm":
            raise ValueError(
                "fisher_embed: expected convolutions and Linear layers for the variational estimator, got "
                f"{layer.name!r} (BatchNorm); leave include_batchnorm off."
            )
        if layer.fan_in < 2:
            raise ValueError(
                f"fisher_embed: expected filters of at least 2 weights for the variational estimator, those of "
                f"{layer.name!r} have 1 and no variance; pass layers=[…] with the others."
            )


def variational_epochs(
    probe: Probe,
    layers: Sequence[Layer],
    head: Head,
    epochs: Iterable[Iterable[Batch]],
    images: int,
    options: VariationalSettings,
    seed: int = 0,
) -> Iterator[RobustFisher]:
    """Minimise the robust objective (module docstring) over variances and head, and yield the Fisher after each epoch.

    `epochs` are batches on the probe's device, epoch after epoch, drawn as wanted; `images` is N, of the task. The
    probe (`folding.fold` gives a faster one) and the head, from which it starts, are untouched.
    """
    check_eval(probe.module)
    check_layers(layers)
    noisy = _NoisyProbe(probe, layers, options, seed)
    kappa = options.kappa(images)
    log_prior = noisy.mean_square.log()  # log 1/λ², of every layer
    weight = head.weight.float().clone().requires_grad_()
    bias = head.bias.float().clone().requires_grad_()
    groups: list[dict[str, Any]] = [
        {"params": [noisy.log_variance], "lr": options.learning_rate},
        {"params": [weight, bias], "lr": options.head_learning_rate or _HEAD_RATE[options.objective]},
    ]
    if options.objective == "authors":
        groups.append({"params": [log_prior.requires_grad_()], "lr": options.learning_rate})
    adam = torch.optim.Adam(groups)
    nll: list[float] = []
    step = 0
    for batches in epochs:
        total, seen = torch.zeros((), dtype=torch.float64), 0
        with torch.enable_grad(), frozen(probe.module):
            for batch in batches:
                adam.zero_grad()
                features = noisy.features(batch.images, step)
                with torch.autocast(batch.images.device.type, enabled=False):  # of the caller's: it is the network's
                    loss = F.cross_entropy(F.linear(features.float(), weight, bias), batch.labels)
                    finite = later(torch.isfinite(loss) & torch.isfinite(noisy.log_variance).all())
                    (loss + kappa * noisy.divergence(log_prior)).backward()
                if not finite():  # asked once the backward pass is queued: a GPU never waits for the answer
                    raise noisy.not_finite(batch.images, step)
                adam.step()
                total = total.to(loss.device) + loss.detach().double() * len(batch.index)
                seen, step = seen + len(batch.index), step + 1
        if seen and not torch.isfinite(noisy.log_variance).all():  # after the epoch's last step
            raise noisy.not_finite(batch.images, step - 1)
        nll.append(float(total) / max(seen, 1))
        log_variance = noisy.log_variance.detach().double().cpu()
        precision = noisy.of_filters(log_prior.detach()).double().cpu().neg().exp()
        fisher = 2 * kappa * (log_variance.neg().exp() - precision)
        yield RobustFisher(fisher.clamp(min=0), log_variance, precision, kappa, tuple(nll))


class _NoisyProbe:
    """A probe whose layers are noisy. The variances are those of the original weights, also if it is a folded one."""

    def __init__(self, probe: Probe, layers: Sequence[Layer], options: VariationalSettings, seed: int) -> None:
        self.probe, self.options, self.seed = probe, options, seed
        self.weights = {layer.name: probe.weight(layer.name) for layer in layers}
        rows = [weight.detach().flatten(1) for weight in self.weights.values()]
        self.sizes = [len(weight) for weight in rows]
        scale = probe.scale if isinstance(probe, FoldedProbe) else {}
        factors = [
            scale.get(layer.name, weight.new_ones(len(weight))).double()
            for layer, weight in zip(layers, rows, strict=True)
        ]
        self.log_scale = torch.cat(factors).square().log().float()
        # A filter whose BatchNorm's factor is 0 has lost its weights and feels no noise.
        original = [w.double() / f.where(f != 0, 1.0)[:, None] for w, f in zip(rows, factors, strict=True)]
        tiny = torch.finfo(torch.float32).tiny
        self.mean_square = torch.stack([w.square().mean() for w in original]).clamp(min=tiny).float()  # of every layer
        start = _START * torch.cat([w.var(1) for w in original])
        self.log_variance = start.clamp(min=1e-6 * self.of_filters(self.mean_square)).log().float().requires_grad_()
        self.fan_in = self.of_filters([weight.shape[1] for weight in rows])
        if options.noise == "weights":
            self.flat = torch.cat([weight.flatten() for weight in rows]).float()
            self.starts = F.pad(self.fan_in.cumsum(0), (1, 0))
            names = {id(weight): name for name, weight in probe.module.named_parameters()}
            self.parameters = [f"net.{names[id(weight)]}" for weight in self.weights.values()]

    def of_filters(self, of_layers: Tensor | list[float] | list[int]) -> Tensor:
        """Repeat one number a layer for each of its filters, ``[K]``; CUDA adds the gradients up in order."""
        numbers = torch.as_tensor(of_layers, device=self.log_scale.device)
        return torch.cat([number.expand(size) for number, size in zip(numbers, self.sizes, strict=True)])

    def divergence(self, log_prior: Tensor) -> Tensor:
        """Return 2KL(N(ŵ, σ²)‖N(0, 1/λ²)) for log 1/λ² of every layer, nats; λ²‖ŵ‖² is constant where λ² is."""
        of_prior = self.of_filters(log_prior)
        gap, mean = self.log_variance - of_prior, (self.of_filters(self.mean_square.log()) - of_prior).exp()
        return (self.fan_in * (gap.exp() - 1 - gap + mean)).sum()

    def features(self, images: Tensor, step: int, look: Callable[[str, Use, Tensor], Tensor] | None = None) -> Tensor:
        """Return the head's input ``[B, D]`` with the noise of one step; `look` sees every layer at work."""
        log_variance = self.log_variance + self.log_scale
        if self.options.noise == "weights":
            noisy = weight_noise(self.flat, log_variance, self.starts, seed=self.seed, step=step)
            weights = list(self.weights.values())
            parts = noisy.split([weight.numel() for weight in weights])
            named = {
                name: part.view(weight.shape).to(weight.dtype)
                for name, weight, part in zip(self.parameters, weights, parts, strict=True)
            }
            watched = dict(zip(self.weights, named.values(), strict=True))
            with Watch(watched, look) if look else nullcontext():
                return torch.func.functional_call(_Features(self.probe), named, (images,))
        of_layers = dict(zip(self.weights, enumerate(log_variance.split(self.sizes)), strict=True))

        def follow(name: str, use: Use, output: Tensor) -> Tensor:
            assert not isinstance(use, BatchNormUse)  # check_layers refuses it
            number, own = of_layers[name]
            conv = (use.stride, use.padding, use.dilation, use.groups) if isinstance(use, ConvUse) else ()
            key: dict[str, Any] = {"seed": self.seed, "layer": number, "step": step}
            epsilon = _EPSILON[self.options.objective]
            input, dtype = use.input.to(output.dtype), output.dtype  # as autocast, where it is on, gave it to the layer
            if output.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):  # its loops take no 16 bits
                output, input = output.float(), input.float()
            noisy = local_noise(output, input, own, use.weight.shape, *conv, **key, epsilon=epsilon).to(dtype)
            return look(name, use, noisy) if look else noisy

        with Watch(self.weights, follow):
            return self.probe.features(images)

    def not_finite(self, images: Tensor, step: int) -> RuntimeError:
        """Return the error that says where, and what to do."""
        return RuntimeError(
            f"fisher_embed: the loss or its gradient is not finite at step {step}: {self.blame(images, step)} not "
            "finite; use a smaller beta or learning rate, float32 weights and finite images."
        )

    def blame(self, images: Tensor, step: int) -> str:
        """Say where the numbers stop being finite."""
        for name, own in zip(self.weights, self.log_variance.split(self.sizes), strict=True):
            if not torch.isfinite(own).all():
                return f"the variances of layer {name!r} are"
        broken: list[str] = []

        def look(name: str, use: Use, output: Tensor) -> Tensor:
            if not torch.isfinite(output).all():
                broken.append(name)
            return output

        with torch.no_grad():
            self.features(images, step, look)
        return f"the output of layer {broken[0]!r} is" if broken else "the head's logits are"


class _Features(nn.Module):
    """`Probe.features` as a module, for `torch.func.functional_call`."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe, self.net = probe, probe.module

    def forward(self, images: Tensor) -> Tensor:
        return self.probe.features(images)
