"""The small probe that ships with the package: a ResNet with a sixteenth of a ResNet-18's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

TINY_SIZE = 48
"""Side of the probe's images: 64 has 1.8 times the pixels, and the demo's sources have no more detail."""

TINY_MEAN = (0.5, 0.5, 0.5)
TINY_STD = (0.25, 0.25, 0.25)
"""Per channel, for images in 0…1: round figures near those of the probe's training images."""

TINY_NUM_CLASSES = 33
"""Classes of the shipped head: the kinds of image in `task2vec_ext.demo.studio.TRAINED`."""


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, with the names that torchvision gives them."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class TinyResNet(nn.Module):
    """Logits of a four-stage residual network for 48x48 images; its head is ``fc``.

    One basic block a stage; with the default widths (channels of the four stages, the stem has the first one's) 0.70 M
    weights in 12 convolutions, K = 1,080 filters. Names (``conv1``, ``layer1`` … ``layer4``, ``fc``) and in-place ReLU
    are torchvision's, so that what works on this probe works on its ResNets. Other image sizes are accepted, but not
    recommended.
    """

    def __init__(  # noqa: D107 - the class says it
        self, num_classes: int = TINY_NUM_CLASSES, widths: Sequence[int] = (24, 48, 96, 192)
    ) -> None:
        super().__init__()
        if len(widths) != 4 or min(widths) < 1:
            raise ValueError(f"TinyResNet: expected four positive widths, got {tuple(widths)}.")
        if num_classes < 1:
            raise ValueError(f"TinyResNet: expected num_classes >= 1, got {num_classes}.")
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(_BasicBlock(widths[0], widths[0], 1))
        self.layer2 = nn.Sequential(_BasicBlock(widths[0], widths[1], 2))
        self.layer3 = nn.Sequential(_BasicBlock(widths[1], widths[2], 2))
        self.layer4 = nn.Sequential(_BasicBlock(widths[2], widths[3], 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Input of the head [B, D], for images `x` [B, 3, H, W] normalised with `TINY_MEAN`, `TINY_STD`."""
        x = self.relu(self.bn1(self.conv1(x)))
        return torch.flatten(self.avgpool(self.layer4(self.layer3(self.layer2(self.layer1(x))))), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of the same images."""
        logits: Tensor = self.fc(self.features(x))
        return logits


def tiny_weights_path() -> Path:
    """Return the path of the shipped weights; the file's metadata say how they were trained, and the accuracies."""
    return Path(__file__).with_name("tiny.safetensors")
