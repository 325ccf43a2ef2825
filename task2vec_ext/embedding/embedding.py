"""The embedding of a task: a vector, its settings, and the file that holds both."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from .._util.html import card, columns
from .._util.words import counted
from ..jackknife import CROSS_FIT_SPREAD, FEWEST_GROUPS, Groups, checked_group_means, group_sizes
from ..probe.layers import Layer, LayerKind
from ..settings import JSON, EmbedSettings
from .file import TENSORS, read_record, to_json, write_record
from .info import HeadInfo, ProbeInfo


@dataclass(frozen=True, eq=False, repr=False)
class Embedding:
    """The embedding of a task: the filter-averaged diagonal Fisher of a fixed probe, and what is needed to compare it.

    Args:
        fisher: F, ``[K]`` float64 on the CPU, one number per filter, nats² per weight², none negative.
        prior: The trivial embedding t₀ = c·λ_l² in the same unit, ``[K]`` float64 on the CPU; λ_l² is the precision of
            the layer's prior.
        layers: Which entries belong to which layer; they cover ``[0, K)`` in order, without gaps.
        probe: The network that the task was embedded with.
        head: How well the fitted head does.
        settings: The settings that the embedding was made with.
        num_samples: N, the number of images that F is the mean over.
        num_skipped: How many images could not be read and were left out.
        num_images: How many images the task has, drawn or not; None in files of before 0.3.
        name: Name of the task.
        classes: Names of the C classes in label order, or None.
        group_means: The mean over each of G groups of the images, ``[G, K]`` float32 on the CPU, from which `jackknife`
            computes error bars; in random order, image i is in group i mod G. None if there are fewer than 8 images, or
            the estimator is ``"variational"``.
        prior_scale: The constant c in t₀, nats; None if unknown.
        epoch_nll: The mean cross-entropy under noise of each epoch, nats; empty unless the estimator is
            ``"variational"``.
        task_digest: Hash of the task's files and labels (`Task.digest`); None where they are unknown.
        metadata: Facts about the task from its source, such as ``domain`` and ``taxonomy``; JSON only.
        version: Version of this package that made the embedding.

    Raises:
        TypeError: If a tensor is not a float64 tensor, or another field holds what JSON cannot.
        ValueError: If a shape or count is wrong, an entry is negative or not finite, or the layers leave a gap.
    """

    fisher: Tensor
    prior: Tensor
    layers: tuple[Layer, ...]
    probe: ProbeInfo
    head: HeadInfo
    settings: EmbedSettings
    num_samples: int
    num_skipped: int = 0
    num_images: int | None = None
    name: str = ""
    classes: tuple[str, ...] | None = None
    group_means: Tensor | None = None
    prior_scale: float | None = None
    epoch_nll: tuple[float, ...] = ()
    task_digest: str | None = None
    metadata: dict[str, JSON] = field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        """Check every field; copies what a caller could change later."""
        for vector in ("fisher", "prior"):
            object.__setattr__(self, vector, _checked_vector(vector, getattr(self, vector)))
        if self.prior.shape != self.fisher.shape:
            raise ValueError(f"Embedding: expected prior of shape [{len(self)}], got {list(self.prior.shape)}.")
        object.__setattr__(self, "layers", tuple(self.layers))
        _check_layers(self.layers, len(self))
        _check_counts(self)
        if self.group_means is not None:
            object.__setattr__(
                self, "group_means", checked_group_means(self.group_means, self.fisher, self.num_samples)
            )
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            if len(self.classes) != self.head.num_outputs:
                wanted, got = self.head.num_outputs, len(self.classes)
                raise ValueError(f"Embedding: expected a name for each of the {wanted} classes, got {got}.")
        object.__setattr__(self, "epoch_nll", tuple(self.epoch_nll))
        # Found out now, not when hours of work are to be saved; the metadata become what a file gives back.
        to_json(self._fields())
        object.__setattr__(self, "metadata", json.loads(to_json(self.metadata)))

    @property
    def norm(self) -> float:
        """The complexity of the task, ‖F‖₁ = Σ_o F[o], in nats² per weight²."""
        return float(self.fisher.sum())

    @property
    def precision(self) -> Tensor:
        """The robust objective's optimum in closed form: c·precision = F + t₀, ``[K]`` float64, nats² per weight².

        F shrunk towards the prior, without SGD, from any estimator's F; `task2vec_ext.fisher.variational` has the
        derivation.
        """
        return self.fisher + self.prior

    @property
    def groups(self) -> Groups:
        """The groups of images that error bars are computed from.

        Raises:
            ValueError: If the embedding has none.
        """
        if self.group_means is None:
            raise ValueError(
                f"Embedding: expected embeddings with error bars, got {self.name!r} (of {self.num_samples} images) "
                f"without; embed the task again, with {FEWEST_GROUPS} images or more and not by 'variational'."
            )
        spread = 1.0 if self.settings.head.cross_fit is None else CROSS_FIT_SPREAD
        return Groups(self.fisher, self.group_means, group_sizes(self.num_samples, len(self.group_means)), spread)

    def layer(self, name: str) -> Tensor:
        """Return the Fisher of one layer's filters.

        Args:
            name: A name in ``layers``.

        Returns:
            A view of ``fisher``, ``[C_out]`` float64.

        Raises:
            ValueError: If there is no such layer.
        """
        for layer in self.layers:
            if layer.name == name:
                return self.fisher[layer.start : layer.stop]
        known = ", ".join(layer.name for layer in self.layers)
        raise ValueError(f"Embedding.layer: expected one of {known}; got {name!r}.")

    def __len__(self) -> int:
        """K, the number of filters."""
        return self.fisher.numel()

    def __repr__(self) -> str:
        """One line: name, size, images, norm, head, probe."""
        return (
            f"Embedding({self.name!r}, K={len(self):,}, N={self.num_samples:,}, norm={self.norm:.4g}, "
            f"{self.head.protocol} {self.head.metric} {self.head.best_score:.1%} of "
            f"{counted(self.head.num_outputs, 'output')}, probe {self.probe.name} {self.probe.weights})"
        )

    def __str__(self) -> str:
        """Name, size, norm with its standard error, head and settings, one per line, and what to call next."""
        norm = f"{self.norm:.4g}"
        if self.group_means is not None:
            norm += f" ± {self.groups.norm_error():.2g}"
        images = f"{self.num_samples:,} images" + (f", {self.num_skipped:,} unreadable" if self.num_skipped else "")
        return "\n".join(
            (
                f"Task2Vec embedding of {self.name!r}: {len(self):,} filters of {self.probe.name} {self.probe.weights}",
                f"  norm   {norm} nats² per weight² (how hard the task is), from {images}",
                f"  head   {self._head_line()}",
                f"  made   {self.settings.estimator} estimator, {self._loss_words()} loss, seed {self.settings.seed}",
                "  next   distance_matrix([this, …]), embedding.save(FILE), Library.nearest(embedding)",
            )
        )

    def _repr_html_(self) -> str:
        """The same as a card of a notebook, with the mean Fisher of each layer."""
        head, images = self.head, f"{self.num_samples:,} images"
        means = [float(self.layer(layer.name).mean()) for layer in self.layers]
        error = "" if self.group_means is None else f" ± {self.groups.norm_error():.2g}"
        return card(
            self.name or "unnamed task",
            f"{len(self):,} filters of {self.probe.name} {self.probe.weights}, {images}",
            [
                (f"{self.norm:.4g}{error}", "norm, nats² per weight²"),
                (f"{head.best_score:.1%}", f"{head.protocol} {head.metric}, {counted(head.num_outputs, 'output')}"),
                (f"{head.best_nll:.3g}", f"{head.protocol} NLL, nats"),
            ],
            columns(
                means,
                [layer.name for layer in self.layers],
                f"mean Fisher of each of {len(means)} layers, input to output: {min(means):.2g} to "
                f"{max(means):.2g}, log scale",
            ),
            f"{self.settings.estimator} estimator, {self._loss_words()} loss, seed {self.settings.seed}"
            + (f", {counted(self.num_skipped, 'image')} unreadable" if self.num_skipped else ""),
        )

    def _loss_words(self) -> str:
        return self.settings.loss_object.name.replace("_", "-")

    def _head_line(self) -> str:
        """How well the head does, on images that it has not seen where there are such."""
        head = self.head
        line = f"{head.protocol} {head.metric} {head.best_score:.1%}, NLL {head.best_nll:.3g} nats; "
        if head.held_out_score is not None:
            line += f"in-sample {head.score:.1%}, {head.nll:.3g} nats; "
        return line + counted(head.num_outputs, "output")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the embedding as safetensors, atomically.

        The same embedding always gives the same bytes. Any safetensors reader can read the tensors; the
        rest is JSON in the metadata, with a SHA-256 over the whole file.

        Args:
            path: The file, usually ``*.safetensors``. Its folder must exist; an existing file is replaced.

        Raises:
            OSError: If the file could not be written; an existing file is not changed.
        """
        write_record(Path(path), self._fields(), {name: getattr(self, name) for name in TENSORS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embedding:
        """Return the embedding that ``save`` wrote, bit for bit.

        Args:
            path: The file.

        Raises:
            ValueError: If there is no such file, it is not an embedding, it is damaged in any byte, or a newer
                version of this package wrote it.
        """
        try:
            fields = read_record(Path(path).expanduser())
            fields["layers"] = tuple(Layer(**layer) for layer in fields["layers"])
            fields["probe"] = ProbeInfo(**fields["probe"])
            fields["head"] = HeadInfo(**fields["head"])
            fields["settings"] = EmbedSettings.from_json(fields["settings"])
            return cls(**fields)
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"Embedding.load: {path} has its checksum, and content that no version of save writes ({why})."
            ) from error

    def _fields(self) -> dict[str, Any]:
        """Everything but the tensors, as plain dictionaries and lists."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in TENSORS]
        fields = {name: getattr(self, name) for name in names}
        # Not `asdict`, which copies every value and takes as long as all else that loading a file does.
        fields["layers"] = [{**vars(layer)} for layer in self.layers]
        fields |= {"probe": {**vars(self.probe)}, "head": {**vars(self.head)}}
        fields["settings"] = self.settings.to_json()
        return fields


def _checked_vector(field: str, value: Tensor) -> Tensor:
    """A private copy of one of the two vectors, once it is known to be one."""
    if not isinstance(value, Tensor) or value.dtype != torch.float64:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"Embedding: expected {field} to be a torch.float64 tensor, got {got}.")
    if value.dim() != 1 or value.numel() == 0 or value.device.type != "cpu":
        raise ValueError(
            f"Embedding: expected {field} of shape [K] with K >= 1 on the CPU, "
            f"got shape {list(value.shape)} on {value.device}."
        )
    least, most = value.aminmax()  # NaN where there is one
    if not 0 <= least <= most < math.inf:
        bad = ~(torch.isfinite(value) & (value >= 0))
        index = int(bad.nonzero()[0])
        raise ValueError(
            f"Embedding: expected {field} to be finite and not negative, got {float(value[index])} at index "
            f"{index} ({int(bad.sum())} such of {value.numel()}); look for NaN or infinite samples."
        )
    return value.detach().clone(memory_format=torch.contiguous_format)


def _check_layers(layers: tuple[Layer, ...], size: int) -> None:
    """Refuse layers that leave a gap, overlap, share a name or end elsewhere than at K."""
    expected, kinds = 0, get_args(LayerKind)
    for layer in layers:
        if layer.kind not in kinds:
            raise ValueError(f"Embedding: expected a layer kind in {kinds}, got {layer}.")
        if layer.start != expected or layer.stop <= layer.start or layer.fan_in < 1:
            raise ValueError(
                f"Embedding: expected a layer that starts at {expected} with stop > start and fan_in >= 1, got {layer}."
            )
        expected = layer.stop
    if expected != size:
        raise ValueError(f"Embedding: expected layers that tile [0, {size}), got layers up to {expected}.")
    names = [layer.name for layer in layers]
    if len(set(names)) != len(names):
        raise ValueError(f"Embedding: expected layer names that differ, got {names}.")


def _check_counts(embedding: Embedding) -> None:
    """Refuse impossible sample counts and head figures."""
    if embedding.num_samples < 1 or embedding.num_skipped < 0:
        raise ValueError(
            f"Embedding: expected num_samples >= 1 and num_skipped >= 0, "
            f"got {embedding.num_samples} and {embedding.num_skipped}."
        )
    head = embedding.head
    if not (
        -math.inf < head.best_score <= 1 and -math.inf < head.score <= 1 and math.isfinite(head.nll + head.best_nll)
    ):
        raise ValueError(f"Embedding: expected a score of at most 1 and a finite nll, got {head}.")
