"""Small networks of every family the README lists: each layer against autograd at batch size one, plain and folded."""

from functools import partial

import pytest
import torch
from cases import assert_near
from torch import nn
from torchvision.models import VGG, ConvNeXt, DenseNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from task2vec_ext import load_probe, reference
from task2vec_ext.data import Batch
from task2vec_ext.fisher import check_per_sample, cotangents, per_sample_fisher
from task2vec_ext.folding import FoldedProbe, fold
from task2vec_ext.head import Head

N, SIDE = 3, 32


def vgg():
    """Its classifier as torchvision's, 102 million weights smaller."""
    with torch.device("meta"):
        net = VGG(nn.Identity(), num_classes=3, init_weights=False)
    net.features = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(4, 4),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(inplace=True),
    )
    net.avgpool = nn.AdaptiveAvgPool2d(2)
    net.classifier = nn.Sequential(
        *(nn.Linear(32, 10), nn.ReLU(True), nn.Dropout()),
        *(nn.Linear(10, 9), nn.ReLU(True), nn.Dropout()),
        nn.Linear(9, 3),
    )
    return net


TORCHVISION = {
    "vgg": (vgg, "classifier.6"),
    "densenet": (
        partial(DenseNet, growth_rate=4, block_config=(2, 2), num_init_features=6, bn_size=2, num_classes=3),
        "classifier",
    ),
    "convnext": (
        partial(ConvNeXt, [CNBlockConfig(6, 8, 1), CNBlockConfig(8, None, 2)], layer_scale=0.5, num_classes=3),
        "classifier.2",
    ),
    "vit": (
        partial(
            VisionTransformer,
            image_size=SIDE,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=12,
            mlp_dim=20,
            num_classes=3,
        ),
        "heads.head",
    ),
    "swin": (
        partial(
            SwinTransformer,
            patch_size=[4, 4],
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=[4, 4],
            num_classes=3,
        ),
        "head",
    ),
}


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


def build(builder, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_probe(randomised(builder(), dtype), preprocess=None)


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


def assert_equals_autograd(probe, tolerance, dtype=torch.float64, side=SIDE):
    layers = probe.layers()
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("family", TORCHVISION)
def test_the_fisher_of_every_layer_equals_autograd_at_batch_size_one(family, dtype, tolerance):
    builder, head = TORCHVISION[family]
    probe = build(builder, dtype)
    assert probe.head == head
    assert isinstance(assert_equals_autograd(probe, tolerance, dtype), FoldedProbe)


TIMM = {  # timm's own miniatures, for tests
    "test_resnet": "fc",
    "test_convnext": "head.fc",
    "test_vit": "head",
}


@pytest.mark.parametrize("family", TIMM)
def test_the_fisher_of_every_layer_of_timms_networks_equals_autograd(family):
    pytest.importorskip("timm", reason="needs the extra timm: pip install '.[timm]'")
    probe = load_probe(f"timm:{family}", weights="random")
    assert probe.head == TIMM[family]
    side = probe.preprocess.crop
    probe = load_probe(randomised(probe.module, torch.float64), preprocess=None)
    assert_equals_autograd(probe, 1e-10, side=side)
