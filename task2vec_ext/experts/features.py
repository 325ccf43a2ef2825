"""Features and class probabilities that experts compute from a task's images, each image read once for all experts."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from .._util.atomic import atomic_path
from ..data import Failure, Preprocess, Task, TaskSource, as_task, check_labels, draw, read_labels, subset
from ..probe.layers import find_head
from ..probe.probe import Probe
from .expert import AnyExpert, as_probe
from .network import Network, RunOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

_TENSORS = ("features", "probabilities", "labels")


@dataclass(frozen=True, eq=False)
class ExpertFeatures:
    """What one expert computes from the images of a task.

    Args:
        features: Input of its head, ``[N, D]`` float32.
        probabilities: Softmax over the classes it was trained on, ``[N, C_source]`` float32; ``[N, 0]`` if its head is
            random and its outputs mean nothing.
        labels: The task's labels, ``[N]`` int64.

    Raises:
        ValueError: If the shapes do not fit together.
    """

    features: Tensor
    probabilities: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Check the shapes."""
        rows = {name: list(getattr(self, name).shape) for name in _TENSORS}
        if [len(shape) for shape in rows.values()] != [2, 2, 1] or len({shape[0] for shape in rows.values()}) != 1:
            raise ValueError(f"ExpertFeatures: expected shapes [N, D], [N, C] and [N], got {rows}.")

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically."""
        with atomic_path(file) as temporary:
            temporary.write_bytes(safetensors.torch.save({name: getattr(self, name).contiguous() for name in _TENSORS}))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> ExpertFeatures:
        """Return what `save` wrote.

        Raises:
            ValueError: If the file is damaged or holds something else.
        """
        try:
            return cls(**safetensors.torch.load_file(file))
        except (safetensors.SafetensorError, TypeError) as error:
            raise ValueError(
                f"ExpertFeatures: expected features in {file}, could not read them ({error}); remove the file."
            ) from error


class Extractor:
    """Experts that compute features of tasks: each is loaded once, and each image is read once for all of them.

    Args:
        experts: Name → expert or probe; probes come back untouched.
        batch_size: Images at a time.
        cache: Folder that keeps the features of tasks made of files, under the network's fingerprint, the images'
            digest, the preprocessing and the precision.
        **options: Device, precision and the like; see `RunOptions`.

    Note:
        An expert is loaded when it is first needed, and stays in memory.
    """

    def __init__(
        self,
        experts: Mapping[str, AnyExpert],
        *,
        batch_size: int = 64,
        cache: str | os.PathLike[str] | None = None,
        **options: Unpack[RunOptions],
    ) -> None:
        """Keep the experts; loads none."""
        self._experts, self._batch_size, self._options = dict(experts), batch_size, options
        self._cache = None if cache is None else Path(cache).expanduser()
        self._loaded: dict[str, _Loaded] = {}

    def __call__(
        self, task: TaskSource, *, num_samples: int | None = None, seed: int = 0, only: Collection[str] | None = None
    ) -> dict[str, ExpertFeatures]:
        """Return by expert's name the features of a task's images, on the CPU, with the images in one order for all.

        Args:
            task: As for `fisher_embed`, with one class an image.
            num_samples: At most this many images, drawn in proportion to the classes; default: all.
            seed: Seed of the draw.
            only: Names of the experts wanted; default: all.

        Raises:
            ValueError: If labels are not 0…C−1, or an image cannot be read.
        """
        source = as_task(task)
        labels = read_labels(source)
        check_labels(labels, who="Extractor")
        return self.features(subset(source, draw(labels, num_samples, seed)), only)

    def features(self, task: Task, only: Collection[str] | None = None) -> dict[str, ExpertFeatures]:
        """Return what a call returns, of all images of a task; classes without images are allowed."""
        digest = task.digest()
        found: dict[str, ExpertFeatures] = {}
        files: dict[str, Path] = {}
        todo: dict[Preprocess | None, dict[str, _Loaded]] = {}
        for name in self._experts if only is None else only:
            if name not in self._loaded:
                self._loaded[name] = _Loaded(as_probe(self._experts[name]), self._options)
            expert = self._loaded[name]
            if self._cache is not None and digest is not None:
                files[name] = self._cache / f"{expert.key(digest)}.safetensors"
                if files[name].exists():
                    found[name] = ExpertFeatures.load(files[name])
                    continue
            todo.setdefault(expert.network.probe.preprocess, {})[name] = expert
        for experts in todo.values():
            read = self._read(task, experts)
            found |= read
            # Features of fewer images would be taken for all of them later.
            for name in [name for name in files.keys() & read.keys() if len(read[name].labels) == len(task)]:
                files[name].parent.mkdir(parents=True, exist_ok=True)
                read[name].save(files[name])
        return found

    @torch.no_grad()
    def _read(self, task: Task, experts: dict[str, _Loaded]) -> dict[str, ExpertFeatures]:
        """Read every image once, for all experts of one preprocessing."""
        network, skipped = next(iter(experts.values())).network, list[Failure]()
        feed = network.feed(task, self._batch_size)
        rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in experts}
        with feed.batches(torch.arange(len(task)), "features", network.on_error, skipped) as batches:
            for batch in batches:
                images = batch.images.contiguous(memory_format=torch.channels_last)
                for name, expert in experts.items():
                    rows[name].append((*expert(images), batch.labels.cpu()))
        if len(skipped) == len(task):
            raise ValueError(f"Extractor: expected an image of {task.name!r} that can be read, got none.")
        network.warn_of(skipped, task)
        return {name: ExpertFeatures(*map(torch.cat, zip(*parts, strict=True))) for name, parts in rows.items()}


class _Loaded:
    """An expert in memory."""

    def __init__(self, probe: Probe, options: RunOptions) -> None:
        self.network = Network(replace(probe, module=copy.deepcopy(probe.module)), **options)
        self.fingerprints = probe.fingerprint, "random" if probe.random_head else head_fingerprint(probe)

    def key(self, digest: str) -> str:
        """Return the name under which the features of these images are kept."""
        preprocess, autocast = self.network.probe.preprocess, self.network.autocast
        precision = str(autocast.fast_dtype) if autocast._enabled else "torch.float32"
        parts = [*self.fingerprints, digest, None if preprocess is None else preprocess.to_dict(), precision]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``[B, D]`` and probabilities ``[B, C_source]``, or ``[B, 0]`` of a random head."""
        probe = self.network.probe
        with self.network.autocast:
            z = probe.features(images).float()
        if probe.random_head:
            return z.cpu(), z.new_empty(len(z), 0).cpu()
        head = find_head(probe.module, probe.head)
        logits = F.linear(z, head.weight.float(), None if head.bias is None else head.bias.float())
        return z.cpu(), logits.softmax(1).cpu()


def head_fingerprint(probe: Probe) -> str:
    """Return the SHA-256 of a probe's head, which `Probe.fingerprint` leaves out."""
    digest = hashlib.sha256()
    for value in find_head(probe.module, probe.head).state_dict().values():
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
