"""Experts: fine-tuned networks that may be chosen for a new task, each in a folder of its own.

| file | what |
|---|---|
| ``weights.safetensors`` | the network, with the head of the classes it was trained on |
| ``card.json`` | its `Card` |
| ``embedding.safetensors`` | optional: the Task2Vec embedding of the task it was trained on |
| ``lock`` | held by the process that trains or writes it |
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import save
from torch import nn

from .._util.atomic import atomic_path
from .._util.lock import locked
from .._util.names import safe_name
from ..data import Preprocess, TaskSource, as_task, check_labels, draw, hold_out, read_labels, subset
from ..data.identity import same_digest
from ..embedding import Embedding
from ..probe.checkpoint import load_state, read_checkpoint
from ..probe.layers import find_head
from ..probe.load import load_probe
from ..probe.probe import Probe
from ..probe.weights import OFFLINE_PROBE, TIMM_PREFIX, TORCHVISION_PROBES, build
from ..settings import JSON
from .errors import IMAGENET
from .finetune import fine_tune
from .network import RunOptions
from .recipe import AnyRecipe, as_recipe

if TYPE_CHECKING:
    from typing_extensions import Unpack

FORMAT_VERSION = 1
_CARD, _WEIGHTS, _EMBEDDING, _CHECKPOINT = "card.json", "weights.safetensors", "embedding.safetensors", "checkpoint.pt"


@dataclass(frozen=True)
class Card:
    """What an expert is and how it was trained.

    Args:
        name: The expert's name: the task it was trained on.
        architecture: A name that `load_probe` takes, or any word for a module of your own.
        head: Name of the last Linear layer.
        num_classes: C, the outputs of that head.
        fingerprint: `Probe.fingerprint` of the network, which leaves out the head.
        preprocess: Preprocessing of its images (`Preprocess.to_dict`), or None.
        weights: Weights that training started from: ``"IMAGENET1K_V1"``, the name of a file, ….
        classes: Names of the C classes in label order, or None.
        num_images: Number of training images; None: unknown.
        task_digest: `Task.digest` of the task's images.
        metrics: Held-out ``error`` and ``nll`` (nats), ….
        recipe: How it was trained, JSON only.
        metadata: The task's metadata.
        version: The package's version.
        random_head: The head's weights are random, as a checkpoint without them leaves them: the network's outputs mean
            nothing, its features do.
    """

    name: str
    architecture: str
    head: str
    num_classes: int
    fingerprint: str
    preprocess: dict[str, Any] | None
    weights: str
    classes: tuple[str, ...] | None = None
    num_images: int | None = None
    task_digest: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    recipe: dict[str, JSON] = field(default_factory=dict)
    metadata: dict[str, JSON] = field(default_factory=dict)
    version: str = field(default_factory=lambda: importlib.metadata.version("task2vec_ext"))
    random_head: bool = False


@dataclass(frozen=True)
class Expert:
    """A fine-tuned network on the disk; `probe` reads its weights.

    Args:
        folder: Folder of its files.
        card: What it is.
    """

    folder: Path
    card: Card

    @property
    def name(self) -> str:
        """The task it was trained on."""
        return self.card.name

    @property
    def fingerprint(self) -> str:
        """The network's `Probe.fingerprint`, without reading it."""
        return self.card.fingerprint

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.folder / _WEIGHTS

    def probe(self, module: nn.Module | None = None) -> Probe:
        """Return the network in eval mode, with the head of its own classes.

        Args:
            module: Module to load the weights into, where the architecture is not one of `load_probe`'s names.

        Raises:
            ValueError: If the weights are missing, damaged, of another architecture or not those of the card.
        """
        card = self.card
        if module is None:
            built_in = card.architecture in (OFFLINE_PROBE, *TORCHVISION_PROBES)
            if not built_in and not card.architecture.startswith(TIMM_PREFIX):
                raise ValueError(
                    f"Expert: expected the module of {self.name!r}, whose architecture {card.architecture!r} has no "
                    "name that load_probe knows; pass probe(module)."
                )
            module = build(card.architecture).module
        old = find_head(module, card.head)
        head = torch.nn.utils.skip_init(nn.Linear, old.in_features, card.num_classes, old.bias is not None)
        module.set_submodule(card.head, head.eval())
        load_state(module, read_checkpoint(self.weights), f"the expert {self.name!r} ({card.architecture})")
        preprocess = None if card.preprocess is None else Preprocess.from_dict(card.preprocess)
        probe = Probe(
            module, card.head, card.architecture, f"expert of {self.name}", preprocess, random_head=card.random_head
        )
        if probe.fingerprint != card.fingerprint:
            raise ValueError(
                f"Expert: expected the weights of {self.name!r} that its card describes, got others in {self.weights}; "
                "train or register it again."
            )
        return probe

    @cached_property
    def embedding(self) -> Embedding | None:
        """The Task2Vec embedding of the task it was trained on; None if there is no such file."""
        return Embedding.load(self.embedding_file) if self.embedding_file.exists() else None

    @property
    def embedding_file(self) -> Path:
        """Path of that embedding: ``fisher_embed(task, probe).save(expert.embedding_file)``."""
        return self.folder / _EMBEDDING


AnyExpert: TypeAlias = "Expert | Probe"


def as_probe(expert: AnyExpert) -> Probe:
    """Return the network of an expert; a probe is returned as it is."""
    return expert.probe() if isinstance(expert, Expert) else expert


def save_expert(
    probe: Probe,
    folder: str | os.PathLike[str],
    name: str,
    *,
    embedding: Embedding | None = None,
    overwrite: bool = False,
    **known: Any,
) -> Expert:
    """Make any network an expert: write its weights and its card into a folder of its own.

    Args:
        probe: The network; `load_probe` reads checkpoints.
        folder: Folder of experts; this one is written to ``folder/NAME``.
        name: The expert's name: the task it was trained on.
        embedding: The Task2Vec embedding of that task.
        overwrite: Replace an expert of that name, with its embedding.
        **known: Other fields of `Card`: ``classes``, ``num_images``, ``task_digest``, ``metrics``, ``recipe``,
            ``metadata``, ``weights``.

    Raises:
        ValueError: If there is such an expert already, the name is reserved, or there are not as many class names as
            the head has outputs.
        RuntimeError: If another process is training or writing this expert.
        OSError: If it could not be written.
    """
    root = _folder_of(Path(folder).expanduser(), name)
    if (root / _CARD).exists() and not overwrite:
        raise ValueError(
            f"save_expert: expected no expert {name!r} in {folder}, found one; choose another name, or replace it: "
            "overwrite=True (on the command line --overwrite)."
        )
    card = _card_of(probe, name, known)
    with _alone(root):
        return _write(probe, root, card, embedding)


def _card_of(probe: Probe, name: str, known: dict[str, Any]) -> Card:
    head = find_head(probe.module, probe.head)
    if known.get("classes") is not None and len(known["classes"]) != head.out_features:
        raise ValueError(
            f"save_expert: expected {head.out_features} names of classes, as the head of {name!r} has outputs, got "
            f"{len(known['classes'])}."
        )
    return Card(
        name=name,
        architecture=probe.name,
        head=probe.head,
        num_classes=head.out_features,
        fingerprint=probe.fingerprint,
        preprocess=None if probe.preprocess is None else probe.preprocess.to_dict(),
        random_head=probe.random_head,
        **{"weights": probe.weights, **known},
    )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Make the expert's folder, and keep every other process from changing it."""
    root.mkdir(parents=True, exist_ok=True)
    busy = f"another process is training or writing the expert in {root}; wait until it ends."
    with locked(root, "expert", busy):
        yield


def _write(probe: Probe, root: Path, card: Card, embedding: Embedding | None = None) -> Expert:
    """Write an expert's files, the card last: a folder with a card is whole, and of one expert."""
    for old in (_CARD, _EMBEDDING):
        (root / old).unlink(missing_ok=True)
    weights = {key: value.cpu().contiguous() for key, value in probe.module.state_dict().items()}
    with atomic_path(root / _WEIGHTS) as temporary:
        temporary.write_bytes(save(weights))
    expert = Expert(root, card)
    if embedding is not None:
        embedding.save(expert.embedding_file)
    with atomic_path(root / _CARD) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT_VERSION, **asdict(card)}, indent=1) + "\n")
    return expert


def train_expert(
    task: TaskSource,
    folder: str | os.PathLike[str],
    probe: str | nn.Module | Probe = "resnet34",
    *,
    recipe: AnyRecipe = "paper",
    held_out: float = 0.2,
    num_samples: int | None = None,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Expert:
    """Return the expert of a task, after fine-tuning the probe on it.

    It can be killed at any moment and called again: training resumes after the last whole epoch, to the same weights.
    An expert that exists already, of the same images and recipe, is returned as it is.

    Args:
        task: As for `fisher_embed`, with one class an image.
        folder: Folder of experts; this one is written to ``folder/NAME``.
        probe: Network to start from, as for `load_probe`; comes back untouched.
        recipe: ``"paper"``, ``"quick"`` (small data) or a `Recipe`.
        held_out: Share of the images by which the best epoch is chosen, in (0, 1).
        num_samples: At most this many images, drawn in proportion to the classes; default: all.
        seed: Seed of every random choice.
        **options: Device, precision and the like; see `RunOptions`.

    Raises:
        ValueError: If labels are not 0…C−1, an option is impossible, or the folder holds an expert of other images or
            another recipe.
        RuntimeError: If the loss is not finite, or another process is training this expert.

    Source:
        Achille et al., Task2Vec, ICCV 2019 (arXiv 1902.03545), §5.
    """
    recipe = as_recipe(recipe)
    source = as_task(task)
    labels = read_labels(source)
    check_labels(labels, who="train_expert")
    net = load_probe(probe)
    root = _folder_of(Path(folder).expanduser(), source.name)
    chosen = subset(source, draw(labels, num_samples, seed))
    started_from: dict[str, JSON] = {"weights": net.weights, "fingerprint": net.fingerprint}
    how: dict[str, JSON] = {**asdict(recipe), "seed": seed, "held_out": held_out, "started_from": started_from}
    if (root / _CARD).exists():
        return _same_training(load_expert(root), chosen.digest(), how, net)
    train, rest = hold_out(chosen, 1 - held_out, seed=seed)
    with _alone(root):
        if (root / _CARD).exists():  # since it was looked for
            return _same_training(load_expert(root), chosen.digest(), how, net)
        tuned = fine_tune(net, train, rest, recipe, seed=seed, checkpoint=root / _CHECKPOINT, **options)
        known = {
            "weights": net.weights,
            "classes": source.classes,
            "num_images": len(train),
            "task_digest": chosen.digest(),
            "metrics": {"error": tuned.best.error, "nll": tuned.best.nll, "epoch": tuned.best.number},
            "recipe": how,
            "metadata": source.metadata,
        }
        expert = _write(tuned.probe, root, _card_of(tuned.probe, source.name, known))
        (root / _CHECKPOINT).unlink()
    return expert


def _same_training(found: Expert, digest: str | None, how: dict[str, JSON], net: Probe) -> Expert:
    """Return an expert that is there already, or raise if it comes from another training."""
    card, preprocess = found.card, None if net.preprocess is None else net.preprocess.to_dict()
    others = {
        "images": not same_digest(card.task_digest, digest),
        "recipe, seed or probe": card.recipe != how,
        "image size or preprocessing": card.preprocess != json.loads(json.dumps(preprocess)),
    }
    if different := [what for what, differs in others.items() if differs]:
        raise ValueError(
            f"train_expert: expected no expert of other training in {found.folder}, got one with another "
            f"{different[0]}; remove it, or choose another folder."
        )
    return found


def load_expert(folder: str | os.PathLike[str]) -> Expert:
    """Return the expert in a folder; its weights are not read yet.

    Raises:
        ValueError: If there is no card, or one that cannot be read.
    """
    file = Path(folder).expanduser() / _CARD
    try:
        content = json.loads(file.read_text())
        if (version := content.pop("format")) == FORMAT_VERSION:
            content["classes"] = None if content["classes"] is None else tuple(content["classes"])
            return Expert(Path(folder).expanduser(), Card(**content))
    except FileNotFoundError:
        raise ValueError(f"load_expert: expected {_CARD} in {folder}, found none; is it an expert's folder?") from None
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        known = ", ".join(entry.name for entry in fields(Card))
        raise ValueError(
            f"load_expert: expected {file} to be JSON with the entries format, {known}; got something else ({error})."
        ) from error
    raise ValueError(f"load_expert: expected {file} in format {FORMAT_VERSION}, got {version}; update the package.")


def experts_in(folder: str | os.PathLike[str]) -> list[Expert]:
    """Return all experts of a folder, by name; those still in training are left out.

    Raises:
        ValueError: If there is no such folder, two experts have one name, or a card cannot be read.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"experts_in: expected a folder of experts, found none at {root}; check the path.")
    experts = sorted((load_expert(card.parent) for card in root.glob(f"*/{_CARD}")), key=lambda expert: expert.name)
    if any(expert.name == IMAGENET for expert in experts):
        raise ValueError(
            f"experts_in: expected no expert called {IMAGENET!r} in {root}, which stands for the probe without "
            "fine-tuning, found one; register it under another name, and remove its folder."
        )
    for one, other in itertools.pairwise(experts):
        if one.name == other.name:
            raise ValueError(
                f"experts_in: expected experts of different names, got {one.name!r} in {one.folder} and "
                f"{other.folder}; remove one."
            )
    return experts


def _folder_of(root: Path, name: str) -> Path:
    """Return the folder of the expert of a name, unless it holds another one, or the name is not free."""
    if name == IMAGENET:
        raise ValueError(
            f"save_expert: expected another name than {IMAGENET!r}, which stands for the probe without fine-tuning; "
            "rename the task or the expert."
        )
    folder = root / safe_name(name)
    if (folder / _CARD).exists() and (other := load_expert(folder).name) != name:
        raise ValueError(
            f"save_expert: expected {folder} to be free for {name!r}, got the expert {other!r}; rename one."
        )
    return folder
