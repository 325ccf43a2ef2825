"""The robust Fisher: the closed form it must converge to, and what it must leave alone."""

import math

import pytest
import torch
from small import small_probe
from torch import nn

from task2vec_ext import reference
from task2vec_ext.data import Batch
from task2vec_ext.head import Head
from task2vec_ext.variational import Variational, variational_epochs

FROZEN = 1e-12  # a learning rate at which the head stays where it is


class TwoLayers:
    """z = σ(Ux), p = σ(w·z), labels y ∼ p drawn anew at every step: the Fisher has a closed form."""

    pictures = 1024

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(4, 12, generator=generator)
        self.second = 2 * torch.randn(4, generator=generator)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 2)).eval()
        with torch.no_grad():
            net[1].weight.copy_(self.first)
        self.probe = small_probe(net, "3")
        self.head = Head(torch.stack([torch.zeros(4), self.second]), torch.zeros(2), 0.0, 0.0)
        self.images = torch.randn(self.pictures, 3, 2, 2, generator=generator)
        with torch.no_grad():
            self.p = torch.sigmoid(net[2](net[1](self.images.flatten(1))) @ self.second)

    @property
    def fisher(self):
        closed = reference.two_layer_fisher(self.first.double(), self.second.double(), self.images.double().flatten(1))
        return closed.diagonal().reshape(4, 12).mean(1)

    def steps(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            labels = (torch.rand(self.pictures, generator=generator) < self.p).long()
            yield Batch(torch.arange(self.pictures), self.images, labels)

    def fit(self, seed, steps=600, **options):
        options = Variational(head_learning_rate=FROZEN, epochs=1, learning_rate=0.02, **options)
        epochs = [self.steps(steps, seed)]
        *_, robust = variational_epochs(
            self.probe, self.probe.layers(), self.head, epochs, self.pictures, options, seed
        )
        return robust


@pytest.mark.parametrize("noise", ["activations", "weights"])
def test_the_fit_converges_to_the_closed_form_within_3_standard_errors(noise):
    """β large enough that σ² is small (the Taylor term is all there is) and the gradient's own noise is, too."""
    net = TwoLayers()
    kappa = 1e-5
    found = torch.stack([net.fit(seed, noise=noise, beta=2 * kappa * net.pictures).fisher for seed in range(8)])
    error = found.mean(0) - net.fisher
    standard_error = found.std(0) / math.sqrt(len(found))
    assert (standard_error <= 0.06 * net.fisher).all()  # a test that can fail
    assert (error.abs() <= 3 * standard_error + 0.02 * net.fisher).all(), (
        error / net.fisher,
        standard_error / net.fisher,
    )
