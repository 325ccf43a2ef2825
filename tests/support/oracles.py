"""The oracle for a whole network: autograd at batch size one, through torch's own forward pass."""

import torch
from cases import assert_near
from torch import nn

from task2vec_ext.data import Batch
from task2vec_ext.fisher.head import Head
from task2vec_ext.fisher.per_sample import check_per_sample, cotangents, per_sample_fisher
from task2vec_ext.kernels import reference
from task2vec_ext.probe.folding import fold

N, SIDE = 3, 32


def randomised(net, dtype):
    """In eval mode, with no weight at a special value: LayerScale, tables of positions, BatchNorm's statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) * 0.1)
                norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    return net.to(dtype).eval()


def task(probe, dtype=torch.float64, side=SIDE):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(N, 3, side, side, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(4, probe.feature_size, generator=generator, dtype=torch.float64)
    return Head(weight, torch.zeros(4, dtype=torch.float64), 0.0, 0.0), Batch(
        torch.arange(N), images, torch.zeros(N, dtype=torch.int64)
    )


def oracle(probe, head, batch, layers):
    """Autograd at batch size one, through torch's own forward pass."""
    net = lambda x: head.logits(probe.features(x))  # noqa: E731
    (v,) = cotangents("signed", net(batch.images).detach(), batch.labels, batch.index)
    weights = [probe.weight(layer.name) for layer in layers]
    columns = reference.per_sample_grad_sq(net, batch.images, v, weights)
    return [column / layer.fan_in for column, layer in zip(columns, layers, strict=True)]


def assert_equals_autograd(probe, tolerance, dtype=torch.float64, side=SIDE, layers=None):
    """Every layer's per-sample Fisher, of the probe and of its folded copy, which is returned."""
    layers = layers or probe.layers()
    head, batch = task(probe, dtype, side)
    expected = oracle(probe, head, batch, layers)
    folded = fold(probe, layers, batch.images[:1])
    for network in (probe, folded):
        check_per_sample(network, layers, batch.images)
        actual = per_sample_fisher(network, layers, head, batch)
        for layer, column in zip(layers, expected, strict=True):  # each on its own scale
            assert column.max() > 0, layer.name
            assert_near(actual[:, layer.start : layer.stop], column, tolerance)
    return folded
