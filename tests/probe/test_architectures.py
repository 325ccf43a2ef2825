"""Small networks of every family the README lists: each layer against autograd at batch size one, plain and folded."""

from functools import partial

import pytest
import torch
from cases import assert_near
from oracles import SIDE, assert_equals_autograd, randomised
from small import Blobs
from torch import nn
from torchvision.models import VGG, ConvNeXt, DenseNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from task2vec_ext import fisher_embed, load_probe
from task2vec_ext.probe.folding import FoldedProbe


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


def build(builder, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_probe(randomised(builder(), dtype), preprocess=None)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("family", TORCHVISION)
def test_the_fisher_of_every_layer_equals_autograd_at_batch_size_one(family, dtype, tolerance):
    builder, head = TORCHVISION[family]
    probe = build(builder, dtype)
    assert probe.head == head
    assert isinstance(assert_equals_autograd(probe, tolerance, dtype), FoldedProbe)


@pytest.mark.parametrize("family", TORCHVISION)
def test_an_embedding_does_not_depend_on_the_batches(family):
    probe = build(TORCHVISION[family][0], torch.float32)
    blobs = Blobs(n=7, side=SIDE)
    one, same, other = (fisher_embed(blobs, probe, batch_size=size, progress=False) for size in (7, 7, 2))
    assert torch.equal(one.fisher, same.fisher)
    for layer in one.layers:
        assert_near(other.layer(layer.name), one.layer(layer.name), 1e-4)  # float32, on each layer's own scale
