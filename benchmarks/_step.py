"""One step of a probe on random images: a plain training step, the Fisher pass, and the reference for both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from _rounding import Comparison, Precision, expect
from torch import Tensor, nn
from torch.nn import functional as F

from task2vec_ext import Probe, load_probe
from task2vec_ext.data import Batch
from task2vec_ext.fisher import CrossFitHead, Head, cotangents, per_sample_fisher
from task2vec_ext.fisher.network_pass import Replays
from task2vec_ext.kernels import filter_grad_sq
from task2vec_ext.kernels.geometry import conv_geometry
from task2vec_ext.kernels.reference import per_sample_grad_sq
from task2vec_ext.kernels.routes import Route, choose_route
from task2vec_ext.probe import Layer
from task2vec_ext.probe.folding import fold
from task2vec_ext.probe.probe import frozen
from task2vec_ext.probe.watch import ConvUse, Watch
from task2vec_ext.words import Estimator

LIMIT = 3e-2
"""Largest relative error of a whole Fisher pass in float32 to autograd in float32, one image at a time. It is wide
because a ReLU whose input is within rounding of zero may open in one of the two and not in the other. Measured for
ResNet-34 on a CPU: 5e-10 at 224 px, 2e-3 at 112 px. There is no such limit for TF32 and bf16, in which ReLUs flip by
nature: emulated on a CPU, ResNet-34 and -50 at 224 px differ by 0.07 and 0.19 in TF32, by 0.21 to 0.27 in bf16. What is
checked in every precision is the operator, on each layer's own tensors (`Step.operator_errors`)."""


@dataclass(frozen=True)
class Setup:
    """What a step is made of; small enough to send to another process."""

    arch: str
    batch_size: int
    size: int
    device: str = "cpu"
    precision: Precision = "fp32"
    channels_last: bool = False

    def build(self) -> Step:
        """Return the step: random weights and images, both of seed 0."""
        set_precision(self.precision, self.device)
        probe = random_probe(self.arch)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        probe.module.to(self.device, memory_format=memory_format)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch_size, 3, self.size, self.size, generator=generator)
        linear = probe.module.get_submodule(probe.head)
        assert isinstance(linear, nn.Linear)
        labels = torch.randint(linear.out_features, (self.batch_size,), generator=generator)
        return Step(
            probe,
            probe.layers(),
            Head(linear.weight.detach().double(), linear.bias.detach().double(), 0.0, 0.0),
            Batch(
                torch.arange(self.batch_size),
                images.to(self.device, memory_format=memory_format),
                labels.to(self.device),
            ),
            self.precision,
        )


@dataclass(eq=False)
class Step:
    """A probe in eval mode, a head (the probe's own last layer) and a batch of images."""

    probe: Probe
    layers: list[Layer]
    head: Head
    batch: Batch
    precision: Precision = "fp32"

    @property
    def context(self) -> torch.autocast:
        """Autocast to bf16, or none: other precisions compute in the weights' own type."""
        bf16 = self.precision == "bf16"
        return torch.autocast(self.batch.images.device.type, torch.bfloat16 if bf16 else None, enabled=bf16)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights an embedding describes, in its order."""
        return [self.probe.weight(layer.name) for layer in self.layers]

    @cached_property
    def faster(self) -> Probe:
        """The folded probe that `fisher_embed` makes once for each task."""
        return fold(self.probe, self.layers, self.batch.images[:1])

    @cached_property
    def unfused(self) -> Probe:
        """The folded probe whose biases, sums and ReLUs torch computes one by one, as on the CPU."""
        return fold(self.probe, self.layers, self.batch.images[:1], fuse=False)

    def loss(self) -> Tensor:
        """Return the cross-entropy to the labels, summed over the images."""
        with self.context:
            return F.cross_entropy(self.probe.module(self.batch.images), self.batch.labels, reduction="sum")

    def forward(self, *, fused: bool = True) -> Tensor:
        """Return the features, without a graph."""
        with torch.no_grad(), self.context:
            return (self.faster if fused else self.unfused).features(self.batch.images)

    def plain(self) -> None:
        """Forward and backward of the summed loss, every weight's gradient: the step of ordinary training."""
        self.probe.module.zero_grad(set_to_none=True)
        self.loss().backward()

    def fisher(self, estimator: Estimator = "signed") -> Tensor:
        """Return the whole Fisher pass, ``[B, K]``; ``"empirical"`` squares the gradients of `loss`."""
        with self.context:
            return per_sample_fisher(self.faster, self.layers, self.head, self.batch, estimator)

    @cached_property
    def graphs(self) -> Replays:
        """What `replayed` replays, from its third call on."""
        return Replays(repeat=False)

    def replayed(self) -> Tensor:
        """Return `fisher`, the network's part from CUDA graphs."""
        with self.context:
            return per_sample_fisher(self.faster, self.layers, self.head, self.batch, network=self.graphs)

    def input_gradients(self, each: Callable[[LayerTensors], None] | None = None) -> None:
        """Run forward and backward without any weight gradient; `each` is given the tensors of every layer."""

        def follow(name: str, use: ConvUse, output: Tensor) -> Tensor:
            if not output.requires_grad:  # the first layer: the graph starts here
                # Cloned, as an in-place ReLU may follow.
                output = output.detach().requires_grad_().clone()
            if each is not None:
                output.register_hook(lambda grad_output: each(LayerTensors.of(name, use, grad_output)))
            return output

        weights = {layer.name: self.faster.weight(layer.name) for layer in self.layers}
        with frozen(self.faster.module), torch.enable_grad(), self.context, Watch(weights, follow):
            features = self.faster.features(self.batch.images)
        features.sum().backward()

    def operator_errors(self, images: int = 2) -> dict[str, Comparison]:
        """Return, for every layer, how far the operator is from float64 on the layer's own tensors, on a few images.

        The operator is given the whole batch, as in `fisher`.
        """
        found: dict[str, Comparison] = {}

        def compare(layer: LayerTensors) -> None:
            actual = filter_grad_sq(layer.input, layer.grad_output, *layer.layer)[:images]
            precision = "fp32" if layer.input.device.type == "cpu" else self.precision
            few = layer.input[:images], layer.grad_output[:images]
            found[layer.name] = expect(*few, layer.layer, layer.route, precision).compare(actual)

        self.input_gradients(compare)
        return found

    def check(self) -> tuple[dict[str, Any], str | None]:
        """Return the errors of operator and whole pass, and what is wrong, if anything is: then nothing is timed."""
        operator = self.operator_errors()
        worst = max(operator, key=lambda name: operator[name].error_to_limit)
        errors = {"operator": {"worst_layer": worst, **operator[worst]._asdict()}, **self.errors()}
        if not operator[worst].error_to_limit <= 1:
            error = operator[worst].error_to_limit
            return errors, f"filter_grad_sq in {worst}: expected an error within its limit, got {error:.1f} times it"
        if self.precision == "fp32" and not errors["relative_error"] <= LIMIT:
            return errors, f"pass: expected a relative error of at most {LIMIT:g}, got {errors['relative_error']:.1e}"
        return errors, None

    def errors(self, images: int = 2) -> dict[str, float]:
        """Return the relative errors of `fisher` to autograd, one image at a time, on the first few images.

        To autograd in the network's own arithmetic, which shows a wrong pass, and to autograd in float64, which shows
        the rounding error of that arithmetic.
        """
        few = Batch(*(part[:images] for part in self.batch))
        with self.context:
            ours = per_sample_fisher(self.faster, self.layers, self.head, few)
            alike = reference_fisher(self.probe, self.layers, self.head, few)
        module = copy.deepcopy(self.probe.module).to("cpu", torch.float64)
        exact = Probe(module, self.probe.head, self.probe.name, self.probe.weights, None)
        few_exact = Batch(few.index, few.images.cpu().double(), few.labels.cpu())
        return {
            "relative_error": relative_error(ours, alike),
            "relative_error_to_float64": relative_error(
                ours, reference_fisher(exact, self.layers, self.head.to(torch.device("cpu")), few_exact)
            ),
        }


@dataclass(frozen=True)
class LayerTensors:
    """What the operator is given for one layer."""

    name: str
    input: Tensor
    grad_output: Tensor
    layer: tuple[Any, ...]
    """weight_shape, stride, padding, dilation, groups."""

    @classmethod
    def of(cls, name: str, use: ConvUse, grad_output: Tensor) -> LayerTensors:
        """Return them as the Fisher pass passes them on."""
        input = use.input.detach().to(grad_output.dtype)  # under autocast the layer computes in a narrower type
        if input.device.type == "cpu" and input.dtype == torch.bfloat16:  # which the operator does not take on the CPU
            input, grad_output = input.float(), grad_output.float()
        return cls(name, input, grad_output, (use.weight.shape, use.stride, use.padding, use.dilation, use.groups))

    @property
    def route(self) -> Route:
        """The route that the operator takes."""
        return choose_route(conv_geometry(self.input, self.grad_output, *self.layer), self.input.device.type)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual − expected‖ / ‖expected‖."""
    actual, expected = actual.cpu().double(), expected.cpu().double()
    return float((actual - expected).norm() / expected.norm())


def reference_fisher(
    probe: Probe, layers: list[Layer], head: Head | CrossFitHead, batch: Batch, seed: int = 0
) -> Tensor:
    """Return what `per_sample_fisher` computes ("signed"), ``[B, K]``, by autograd at batch size one."""
    with torch.no_grad():
        features = torch.cat([probe.features(image[None]) for image in batch.images])
        own = head.of(batch.index)
        (v,) = cotangents("signed", own.logits(features), batch.labels, batch.index, seed, head.loss)
    weights = [probe.weight(layer.name) for layer in layers]
    squares = per_sample_grad_sq(probe.features, batch.images, own.pull(v).to(features.dtype), weights)
    return torch.cat([part.double() / layer.fan_in for part, layer in zip(squares, layers, strict=True)], 1)


def random_probe(arch: str) -> Probe:
    """Return a probe with random weights whose BatchNorms have the statistics of random images.

    With their initial mean 0 and variance 1, activations would grow from block to block, the softmax would saturate,
    and every gradient would be zero.
    """
    probe = load_probe(arch, weights="random", preprocess=None)
    norms = [module for module in probe.module.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    # Few and small: the measurement of memory must find no large freed blocks to reuse.
    with torch.no_grad():
        probe.module.train()(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    probe.module.eval()
    return probe


def set_precision(precision: Precision, device: str) -> None:
    """Choose what float32 convolutions and products compute in on a GPU (by default, cuDNN may use TF32).

    bf16 is autocast (`Step.context`); operations it leaves in float32 use full float32.
    """
    if not device.startswith("cuda"):
        if precision == "tf32":
            raise SystemExit(f"--precision tf32: expected fp32 or bf16 on {device}; TF32 needs a GPU.")
        return
    arithmetic = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = arithmetic
    torch.backends.cuda.matmul.fp32_precision = arithmetic
