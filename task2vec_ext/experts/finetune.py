"""Fine-tuning: a probe's network trained on one task; the best epoch is kept, and interrupted training resumes."""

from __future__ import annotations

import copy
import io
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._util.atomic import atomic_path
from ..data import Failure, Task, check_labels, read_labels
from ..fisher.head import fit_head
from ..probe.layers import find_head
from ..probe.probe import Probe
from .network import Network, RunOptions
from .recipe import AnyRecipe, Recipe, as_recipe

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Epoch:
    """How the network does after an epoch.

    Args:
        number: From 1.
        train_nll: Mean loss over the training images during the epoch, nats.
        error: Share of the held-out images labelled wrong.
        nll: Mean loss of the held-out images, nats.
    """

    number: int
    train_nll: float
    error: float
    nll: float


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned network.

    Args:
        probe: Network of the best epoch, in eval mode on the CPU, with a head of the task's C classes.
        best: Epoch of the least held-out error; among equals, of the least NLL.
        epochs: All epochs.
    """

    probe: Probe
    best: Epoch
    epochs: tuple[Epoch, ...]


def fine_tune(
    probe: Probe,
    train: Task,
    held_out: Task,
    recipe: AnyRecipe = "paper",
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    **options: Unpack[RunOptions],
) -> FineTuned:
    """Return the probe's network trained on a task: first the head, then all layers, the best epoch kept.

    Args:
        probe: Network to start from; comes back untouched.
        train: Images to train on; every class 0…C−1 occurs.
        held_out: Images of the same classes, by which the best epoch is chosen.
        recipe: ``"paper"``, ``"quick"`` or a `Recipe`.
        seed: Seed of order and augmentation: same seed, same weights on one machine.
        checkpoint: File written after every epoch. If it exists, training resumes from it, to the same weights as
            without an interruption.
        **options: Device, precision and the like; see `RunOptions`.

    Raises:
        ValueError: If labels are not 0…C−1, an image cannot be read, nothing is held out, or the checkpoint is of
            another training.
        RuntimeError: If the loss is not finite.

    Note:
        Random numbers depend on (seed, epoch) alone, so that a resumed training needs no random state.

    Source:
        Achille et al., Task2Vec, ICCV 2019 (arXiv 1902.03545), §5.
    """
    recipe = as_recipe(recipe)
    num_classes = check_labels(read_labels(train), who="fine_tune")
    if len(held_out) == 0:
        raise ValueError(f"fine_tune: expected images held out of {train.name!r}, got none; they tell the best epoch.")
    images = {"task": train.digest(), "images": len(train), "classes": num_classes}
    preprocess = None if probe.preprocess is None else probe.preprocess.to_dict()
    settings = {"probe": probe.fingerprint, **images, "seed": seed, "recipe": asdict(recipe), "preprocess": preprocess}
    module = copy.deepcopy(probe.module).requires_grad_(True)
    head = torch.nn.utils.skip_init(nn.Linear, probe.feature_size, num_classes)  # fitted before anything reads it
    module.set_submodule(probe.head, head)
    run = _Run(Network(replace(probe, module=module.eval()), **options), train, held_out, recipe, seed)
    if checkpoint is not None and checkpoint.exists():
        run.restore(checkpoint, settings)
    else:
        run.fit_head()
    while len(run.epochs) < recipe.epochs:
        run.epoch()
        if checkpoint is not None:
            run.save(checkpoint, settings)
    run.module.load_state_dict(run.best_state)
    tuned = replace(run.probe, module=run.module.to("cpu").eval(), random_head=False)
    return FineTuned(tuned, run.best, tuple(run.epochs))


class _Run:
    """One training: what changes from epoch to epoch."""

    def __init__(self, network: Network, train: Task, held_out: Task, recipe: Recipe, seed: int) -> None:
        self.probe, self.module, self.recipe, self.seed = network.probe, network.probe.module, recipe, seed
        self.device, self.autocast, self.network = network.device, network.autocast, network
        self.train, self.held_out = (network.feed(task, recipe.batch_size) for task in (train, held_out))
        self.optimizer = torch.optim.SGD(
            self.module.parameters(), recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.epochs: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}
        self.readable = torch.arange(len(train))  # numbers of the training images

    @property
    def best(self) -> Epoch:
        return min(self.epochs, key=lambda epoch: (epoch.error, epoch.nll))

    def fit_head(self) -> None:
        """Fit the head on the features that the network has."""
        features, labels, read = [], [], []
        skipped, on_error, task = list[Failure](), self.network.on_error, self.train.task
        with torch.no_grad(), self.train.batches(self.readable, "features", on_error, skipped) as loaded:
            for batch in loaded:
                features.append(self.probe.features(batch.images).float())
                labels.append(batch.labels)
                read.append(batch.index.cpu())
        self.network.warn_of(skipped, task)
        head = find_head(self.module, self.probe.head)
        if lost := set(range(head.out_features)).difference(*(part.tolist() for part in labels)):
            raise ValueError(
                f"fine_tune: expected an image of every class of {task.name!r} that can be read, got none of class "
                f"{min(lost)}; correct its images, or leave the class out."
            )
        self.readable = torch.cat(read)
        z, y = torch.cat(features), torch.cat(labels)
        fitted = fit_head(z, y, head.out_features, method=self.recipe.head, seed=self.seed)
        with torch.no_grad():
            head.weight.copy_(fitted.weight)
            head.bias.copy_(fitted.bias)

    def epoch(self) -> None:
        """Train on all images once, then measure the held-out error."""
        number, count = len(self.epochs) + 1, len(self.readable)
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(1_000_003 * self.seed + number)  # a prime: no two seeds share their epochs
            order = self.readable[torch.randperm(count)]
            if count % self.recipe.batch_size == 1:  # BatchNorm has no statistics of one image
                order = order[:-1]
            train_nll = self._train(order, number)
        self.module.eval()
        self.epochs.append(Epoch(number, train_nll, *self._held_out_error(number)))
        if self.best.number == number:
            self.best_state = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def _train(self, order: Tensor, number: int) -> float:
        """Take a step for every batch; return the mean loss."""
        total, seen = 0.0, 0
        self.module.train()
        for module in self.module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(self.recipe.batch_statistics)
        with self.train.batches(order, f"epoch {number} of {self.recipe.epochs}", self.network.on_error) as loaded:
            for batch in loaded:
                done = (number - 1 + seen / len(order)) / self.recipe.epochs
                for group in self.optimizer.param_groups:
                    group["lr"] = self.recipe.rate(done)
                with self.autocast:
                    logits = self.module(_augmented(batch.images, self.recipe))
                loss = F.cross_entropy(logits.float(), batch.labels)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                total, seen = total + float(loss.detach()) * len(batch.labels), seen + len(batch.labels)
                if not math.isfinite(total):
                    raise RuntimeError(
                        f"fine_tune: expected a finite loss, got {float(loss.detach())} in epoch {number} of "
                        f"{self.train.task.name!r}; lower the learning rate (now {self.recipe.learning_rate:g})."
                    )
        return total / seen

    @torch.no_grad()
    def _held_out_error(self, number: int) -> tuple[float, float]:
        wrong, nll, seen, everything = 0, 0.0, 0, torch.arange(len(self.held_out.task))
        on_error, skipped = self.network.on_error, list[Failure]()
        with self.held_out.batches(everything, f"epoch {number}, held out", on_error, skipped) as loaded:
            for batch in loaded:
                with self.autocast:
                    logits = self.module(batch.images.contiguous(memory_format=torch.channels_last))
                wrong += int((logits.argmax(1) != batch.labels).sum())
                nll += float(F.cross_entropy(logits.float(), batch.labels, reduction="sum"))
                seen += len(batch.labels)
        if number == 1:
            self.network.warn_of(skipped, self.held_out.task)
        if seen == 0:
            raise ValueError(f"fine_tune: expected a held-out image of {self.held_out.task.name!r} that can be read.")
        return wrong / seen, nll / seen

    def save(self, file: Path, settings: dict[str, Any]) -> None:
        """Write all that `restore` needs."""
        content = {
            "settings": json.dumps(settings),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "readable": self.readable,
            "module": self.module.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
        }
        written = io.BytesIO()
        torch.save(content, written)  # to memory: torch has no words for a full disk
        with atomic_path(file) as temporary:
            temporary.write_bytes(written.getvalue())  # getbuffer() crashes the garbage collector of Python 3.12.1

    def restore(self, file: Path, settings: dict[str, Any]) -> None:
        """Return to the state that `save` wrote."""
        try:
            content = torch.load(file, map_location=self.device, weights_only=True)
            found = json.loads(content["settings"])
        except Exception as error:
            raise ValueError(
                f"fine_tune: expected a checkpoint in {file}, could not read it ({error}); remove it to start anew."
            ) from error
        wanted = json.loads(json.dumps(settings))
        if found != wanted:
            differ = ", ".join(key for key in wanted if found.get(key) != wanted[key])
            raise ValueError(
                f"fine_tune: expected {file} to be a checkpoint of this training, got one of another ({differ} "
                "differ); remove it, or train in another folder."
            )
        self.epochs = [Epoch(**epoch) for epoch in content["epochs"]]
        self.readable = content["readable"].cpu()
        self.module.load_state_dict(content["module"])
        self.best_state = content["best"]
        self.optimizer.load_state_dict(content["optimizer"])


def _augmented(images: Tensor, recipe: Recipe) -> Tensor:
    """Return images ``[B, 3, H, W]`` shifted and mirrored at random, channels-last."""
    height, width = images.shape[2:]
    reach = math.floor(recipe.shift * min(height, width))
    if reach:
        padded = F.pad(images, (reach,) * 4, mode="reflect")
        places = torch.randint(2 * reach + 1, (len(images), 2)).tolist()
        images = torch.stack([padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(places)])
    if recipe.flip:
        mirrored = torch.rand(len(images), 1, 1, 1).to(images.device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    return images.contiguous(memory_format=torch.channels_last)
