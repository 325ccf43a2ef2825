"""One step of a probe on random pictures: the plain one, the Fisher pass, and the reference that both answer to."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from task2vec_ext import Probe, load_probe
from task2vec_ext.data import Batch
from task2vec_ext.embedding import Layer
from task2vec_ext.fisher import Estimator, cotangents, per_sample_fisher
from task2vec_ext.head import Head
from task2vec_ext.reference import per_sample_grad_sq

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

LIMIT: dict[Precision, float] = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 2e-1}
"""Largest relative error of a Fisher pass to the reference in float64. float32: measured 6e-7 (ResNet-18). tf32 and
bf16 round to 11 and 8 bits, 5e-4 and 4e-3, in dozens of layers there and back: an estimate, no GPU has shown it."""


@dataclass(frozen=True)
class Setup:
    """What a step is made of; small enough to hand to another process."""

    arch: str
    batch_size: int
    size: int
    device: str = "cpu"
    precision: Precision = "fp32"
    channels_last: bool = False

    def build(self) -> Step:
        """Return the step: random weights and pictures, both of seed 0."""
        set_precision(self.precision, self.device)
        probe = random_probe(self.arch)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        probe.module.to(self.device, dtype, memory_format=memory_format)
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
                images.to(self.device, dtype, memory_format=memory_format),
                labels.to(self.device),
            ),
        )


@dataclass(frozen=True)
class Step:
    """A probe in eval mode, a head (the probe's own last layer) and a batch of pictures."""

    probe: Probe
    layers: list[Layer]
    head: Head
    batch: Batch

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights an embedding describes, in its order."""
        return [self.probe.module.get_submodule(layer.name).weight for layer in self.layers]

    def loss(self) -> Tensor:
        """Return the cross-entropy to the labels, summed over the pictures."""
        return F.cross_entropy(self.probe.module(self.batch.images), self.batch.labels, reduction="sum")

    def forward(self) -> Tensor:
        """Return the features, without a graph."""
        with torch.no_grad():
            return self.probe.features(self.batch.images)

    def plain(self) -> None:
        """Forward and backward of the summed loss, every weight's gradient: the step of ordinary training."""
        self.probe.module.zero_grad(set_to_none=True)
        self.loss().backward()

    def fisher(self, estimator: Estimator = "signed") -> Tensor:
        """Return the whole Fisher pass, ``[B, K]``; ``"empirical"`` squares the gradients of `loss`."""
        return per_sample_fisher(self.probe, self.layers, self.head, self.batch, estimator)

    def error(self, pictures: int = 2) -> float:
        """Return the relative error of `fisher` to autograd in float64, one picture at a time, on the first few."""
        few = Batch(*(part[:pictures] for part in self.batch))
        ours = per_sample_fisher(self.probe, self.layers, self.head, few).cpu()
        expected = reference_fisher(self.probe, self.layers, self.head, few)
        return float((ours - expected).norm() / expected.norm())


def reference_fisher(probe: Probe, layers: list[Layer], head: Head, batch: Batch, seed: int = 0) -> Tensor:
    """Return what `per_sample_fisher` stands for ("signed"), ``[B, K]`` float64, by autograd at batch size one."""
    module = copy.deepcopy(probe.module).to("cpu", torch.float64).requires_grad_()
    exact = Probe(module, probe.head, probe.name, probe.weights, probe.preprocess)
    head, images = head.to(torch.device("cpu")), batch.images.cpu().double()
    with torch.no_grad():
        logits = head.logits(exact.features(images))
    (v,) = cotangents("signed", logits, batch.labels.cpu(), batch.index.cpu(), seed)
    weights = [module.get_submodule(layer.name).weight for layer in layers]
    squares = per_sample_grad_sq(exact.features, images, v @ head.weight, weights)
    return torch.cat([part / layer.fan_in for part, layer in zip(squares, layers, strict=True)], 1)


def random_probe(arch: str) -> Probe:
    """Return a probe with random weights whose BatchNorms know the activations' scale.

    As built they believe in mean 0 and variance 1: activations grow from block to block, the softmax saturates, and
    every gradient is zero.
    """
    probe = load_probe(arch, weights="random", preprocess=None)
    norms = [module for module in probe.module.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    # Few small pictures are enough, and leave no large blocks behind for the memory's measurement to reuse.
    with torch.no_grad():
        probe.module.train()(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    probe.module.eval()
    return probe


def set_precision(precision: Precision, device: str) -> None:
    """Choose what float32 convolutions and products compute in on a GPU (torch's default lets cuDNN use TF32)."""
    if not device.startswith("cuda"):
        if precision != "fp32":
            raise SystemExit(f"--precision {precision}: expected fp32 on {device}, the others need a GPU.")
        return
    arithmetic = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = arithmetic
    torch.backends.cuda.matmul.fp32_precision = arithmetic
