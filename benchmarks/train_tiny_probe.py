"""Trains the tiny probe that the package ships.

    python benchmarks/train_tiny_probe.py [--out PATH] [--seed 0] [--threads 1]

The probe learns one classification of all kinds in `studio.TRAINED` (digits, patches of photographs, shapes, textures),
on images made as the demo's are. It is judged by the kinds in `studio.UNSEEN`, which it never sees: a linear classifier
on its features must tell them apart better than one on an untrained network's features or on raw pixels. The same seed,
threads, machine and library versions give the same weights, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from task2vec_ext.demo.studio import TRAINED, TRAINING_DIGITS, UNSEEN, Studio
from task2vec_ext.probe.tiny import TINY_MEAN, TINY_SIZE, TINY_STD, TinyResNet, tiny_weights_path

TRAINED_KINDS = tuple(kind for kinds in TRAINED.values() for kind in kinds)
UNSEEN_KINDS = tuple(kind for kinds in UNSEEN.values() for kind in kinds)

ROUNDS, ROUND_PER_KIND, BATCH = 16, 64, 64  # 33 kinds x 64 images a round: 34,000 in all, in minutes
PEAK_RATE, WEIGHT_DECAY = 0.02, 1e-4
# A low rate on purpose: a draft trained with rate 0.1 and decay 5e-4 got 91 % of the unseen kinds right (this one:
# 85 %), but the nearest task was of the same family for only 0.80 of the demo's tasks (this one: 0.96; d_sym scaled to
# unit mean, images of seeds 0 and 1; the draft's images differed slightly).


def make_images(kinds: Sequence[str], per_kind: int, seed: int, *, training: bool = False) -> tuple[Tensor, Tensor]:
    """Return new images uint8 [N, 3, TINY_SIZE, TINY_SIZE] and their labels int64 [N], indices into `kinds`."""
    studio = Studio(seed, training=training)
    images = np.stack([studio.image(kind) for kind in kinds for _ in range(per_kind)])
    labels = torch.arange(len(kinds)).repeat_interleave(per_kind)
    return torch.from_numpy(images).permute(0, 3, 1, 2), labels


def _batches(x: Tensor) -> Iterator[Tensor]:
    return (x[start : start + BATCH] for start in range(0, len(x), BATCH))


def _normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (TINY_MEAN, TINY_STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def _augmented(x: Tensor) -> Tensor:
    """Return images shifted by up to 4 pixels, with other contrast, some grey, inverted or with channels swapped."""
    b = len(x)
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    rows, columns = torch.randint(0, 9, (2, b, 1)) + torch.arange(TINY_SIZE)
    x = padded.permute(0, 2, 3, 1)[torch.arange(b).view(b, 1, 1), rows[:, :, None], columns[:, None]]
    # x is [B, H, W, 3] from here on
    x = torch.where(torch.rand(b, 1, 1, 1) < 0.2, x.mean(3, keepdim=True).expand_as(x), x)
    x = torch.where(torch.rand(b, 1, 1, 1) < 0.15, x[..., torch.randperm(3)], x)
    x = torch.where(torch.rand(b, 1, 1, 1) < 0.2, -x, x)
    x = x * (0.7 + 0.6 * torch.rand(b, 1, 1, 1)) + 0.2 * torch.randn(b, 1, 1, 3)
    return x.permute(0, 3, 1, 2)  # channels-last in memory


@torch.no_grad()
def probe_features(probe: TinyResNet, images: Tensor) -> NDArray[np.float64]:
    """Return the features float64 [N, D] of uint8 images [N, 3, H, W], in eval mode."""
    probe.eval()
    return torch.cat([probe.features(_normalised(batch)) for batch in _batches(images)]).double().numpy()


def linear_probe_accuracy(features: NDArray[np.float64], labels: Tensor) -> float:
    """Return the accuracy of a linear classifier fitted on every other image and tested on the rest, in 0…1.

    The classifier is ridge regression on standardised features; leave-one-out on the fitting half chooses the penalty.

    Args:
        features: ``[N, D]``.
        labels: ``[N]`` int64, in any order.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = labels.numpy()
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(0, 5, 11)))
    return float(model.fit(features[::2], y[::2]).score(features[1::2], y[1::2]))


@torch.no_grad()
def _accuracy(probe: TinyResNet, images: Tensor, labels: Tensor) -> float:
    probe.eval()
    guesses = torch.cat([probe(_normalised(batch)).argmax(1) for batch in _batches(images)])
    return float((guesses == labels).double().mean())


def train(seed: int, rounds: int) -> tuple[TinyResNet, float]:
    """Return a probe trained on `TRAINED_KINDS`, in eval mode, and its accuracy on the last round, augmented."""
    torch.manual_seed(seed)
    probe = TinyResNet(len(TRAINED_KINDS)).to(memory_format=torch.channels_last)
    steps = rounds * -(-len(TRAINED_KINDS) * ROUND_PER_KIND // BATCH)
    optimizer = torch.optim.SGD(probe.parameters(), PEAK_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.2)
    loss_of = nn.CrossEntropyLoss()
    accuracy = 0.0
    for number in range(rounds):
        # New images every round, with seeds far from those of `measure`.
        round_seed = 1000 * (seed + 1) + number
        images, labels = make_images(TRAINED_KINDS, ROUND_PER_KIND, round_seed, training=True)
        probe.train()
        total, right = 0.0, 0
        for index in _batches(torch.randperm(len(labels))):
            logits = probe(_augmented(_normalised(images[index])))
            loss = loss_of(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
            right += int((logits.argmax(1) == labels[index]).sum())
        accuracy = right / len(labels)
        loss_mean = total / len(labels)
        print(f"round {number + 1:2d}/{rounds}  loss {loss_mean:.3f}  accuracy {accuracy:.3f}", flush=True)
    return probe.eval(), accuracy


def measure(probe: TinyResNet, seed: int) -> dict[str, float]:
    """Return accuracies on new images of trained kinds and, by linear classifiers, on kinds never seen."""
    torch.manual_seed(seed + 1)
    untrained = TinyResNet()
    figures = {"trained kinds, new images": _accuracy(probe, *make_images(TRAINED_KINDS, 40, seed))}
    groups = {"unseen kinds": UNSEEN_KINDS, **{f"unseen {family}": kinds for family, kinds in UNSEEN.items()}}
    for name, kinds in groups.items():
        images, labels = make_images(kinds, 80, seed)
        rivals = {
            "trained": probe_features(probe, images),
            "untrained": probe_features(untrained, images),
            "pixels": images.flatten(1).double().numpy(),
        }
        for rival, features in rivals.items():
            figures[f"{name}, linear probe, {rival}"] = linear_probe_accuracy(features, labels)
    return {name: round(figure, 4) for name, figure in figures.items()}


def describe(seed: int, figures: dict[str, float]) -> dict[str, str]:
    """Return the file's metadata: what a reader needs to judge the weights or to train them again."""
    command = f"python benchmarks/train_tiny_probe.py --seed {seed} --threads {torch.get_num_threads()}"
    recipe = {
        "command": command,
        "loss": "cross-entropy",
        "optimizer": f"SGD, Nesterov momentum 0.9, weight decay {WEIGHT_DECAY}, one cycle to {PEAK_RATE}",
        "images": ROUNDS * ROUND_PER_KIND * len(TRAINED_KINDS),
        "batch": BATCH,
        "augmentation": "shift 4 px, grey 0.2, channels permuted 0.15, inverted 0.2, contrast 0.3, cast 0.2",
        "torch": torch.__version__,
    }
    data = {
        "handwriting": f"scikit-learn's digits, the first {TRAINING_DIGITS} of each trained class",
        "photographs": "patches of scikit-learn's china.jpg and flower.jpg; new ones may overlap them",
        "drawings, textures": "drawn by task2vec_ext.demo.studio",
    }
    return {
        "architecture": "task2vec_ext.probe.tiny.TinyResNet",
        "preprocessing": json.dumps({"size": TINY_SIZE, "mean": TINY_MEAN, "std": TINY_STD}),
        "recipe": json.dumps(recipe),
        "seed": str(seed),
        "data": json.dumps(data),
        "trained_classes": json.dumps(TRAINED_KINDS),
        "held_out_classes": json.dumps(UNSEEN_KINDS),
        "accuracies": json.dumps(figures),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, print and save."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description="Train the demo's probe.")
    parser.add_argument("--out", type=Path, default=tiny_weights_path(), help="file to write (the shipped)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of all images (0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number, other bits (1)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    probe, accuracy = train(chosen.seed, ROUNDS)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    figures = {"training images, augmented": round(accuracy, 4), **measure(probe, chosen.seed)}
    for name, figure in figures.items():
        print(f"{figure:6.3f}  {name}")
    weights = {name: tensor.contiguous() for name, tensor in probe.state_dict().items()}
    unfinished = chosen.out.with_suffix(".part")
    save_file(weights, unfinished, metadata=describe(chosen.seed, figures))
    unfinished.replace(chosen.out)
    print(f"wrote {chosen.out} ({chosen.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
