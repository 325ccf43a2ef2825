"""The embedding of a task: a vector, its settings, and the file that holds both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import safetensors.torch
import torch
from torch import Tensor

from ._util.atomic import atomic_path
from .fisher.cross_fit import CrossFitHead
from .fisher.head import Head
from .jackknife import FEWEST_GROUPS, Groups, checked_group_means, group_sizes
from .probe.layers import Layer, LayerKind
from .settings import JSON, EmbedSettings, settings_of_format_2, value_differences

if TYPE_CHECKING:
    from .probe.probe import Probe


FORMAT_VERSION = 4  # raised where older versions would misread a file
_METADATA_KEY = "task2vec_ext"  # one key only: safetensors does not promise an order of several
_TENSORS = ("fisher", "prior", "group_means")
_BLANK_DIGEST = "0" * 64
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself
_RENAMED = {"num_classes": "num_outputs", "accuracy": "score"}  # fields of the head in files of format 1
_OF_HEAD_SETTINGS = ("method", "l2", "class_balanced")  # which files of format 2 had among the head's fields


@dataclass(frozen=True)
class ProbeInfo:
    """The network that a task was embedded with.

    Args:
        name: Architecture, e.g. ``"resnet34"``.
        weights: Where its weights came from, e.g. ``"IMAGENET1K_V1"``.
        fingerprint: Hash of architecture and weights; equal fingerprints mean equal probes.
        head: Name of the layer that was refitted.
        preprocess: `Preprocess.to_dict` of what was done to every image; None where the task gave the probe's input.
    """

    name: str
    weights: str
    fingerprint: str
    head: str = ""
    preprocess: dict[str, Any] | None = None

    @classmethod
    def of(cls, probe: Probe) -> ProbeInfo:
        """Return what an embedding keeps of a probe."""
        preprocess = None if probe.preprocess is None else probe.preprocess.to_dict()
        return cls(probe.name, probe.weights, probe.fingerprint, probe.head, preprocess)

    def differences(self, other: ProbeInfo) -> list[str]:
        """Return the differences of the two probes as texts; weights are compared by fingerprint, not by name."""
        found = []
        if self.fingerprint != other.fingerprint:
            found.append(f"probe: {self} against {other}")
        if self.head and other.head:  # files of format 1 did not say
            found += value_differences("head layer", self.head, other.head)
        return found + value_differences("preprocess", self.preprocess, other.preprocess)

    def __str__(self) -> str:
        """Return name, weights and the first digits of the fingerprint."""
        return f"{self.name} {self.weights} ({self.fingerprint[:12]})"


@dataclass(frozen=True)
class HeadInfo:
    """The fitted head, and how well it does.

    Args:
        num_outputs: C classes or labels, or K numbers.
        score: On the images that the head was fitted to: at most 1, in the measure that ``metric`` names.
        nll: On the same images: the mean negative log-likelihood in nats of an image's label, of all its known labels,
            of its standardised numbers, or of a labelled cell of the feature map for ``"dense"``.
        metric: ``"accuracy"``, ``"mean average precision"`` (over labels) or ``"R²"`` (mean over targets).
        held_out_score: The score of heads on images that they were not fitted to; None if there are no such heads
            (``HeadSettings(cross_fit=None)``) or no such images.
        held_out_nll: Their NLL on those images.
        num_not_held_out: How many images are in the fit of every head, because they are the only ones with a class.
    """

    num_outputs: int
    score: float
    nll: float
    metric: str = "accuracy"
    held_out_score: float | None = None
    held_out_nll: float | None = None
    num_not_held_out: int = 0

    @classmethod
    def of(cls, head: Head | CrossFitHead) -> HeadInfo:
        """Return what an embedding keeps of a head."""
        if isinstance(head, Head):
            return cls(len(head.weight), head.score, head.nll, head.loss.metric)
        whole = cls.of(head.whole)
        if math.isnan(head.nll):
            return replace(whole, num_not_held_out=head.num_in_all)
        return replace(whole, held_out_score=head.score, held_out_nll=head.nll, num_not_held_out=head.num_in_all)

    @property
    def best_score(self) -> float:
        """The held-out score, where there is one; else the in-sample score."""
        return self.score if self.held_out_score is None else self.held_out_score

    @property
    def best_nll(self) -> float:
        """The held-out NLL, where there is one; else the in-sample NLL."""
        return self.nll if self.held_out_nll is None else self.held_out_nll

    @property
    def protocol(self) -> str:
        """Which of the two these are: ``"held-out"`` or ``"in-sample"``."""
        return "in-sample" if self.held_out_score is None else "held-out"


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
        object.__setattr__(self, "metadata", json.loads(_to_json(self._fields()))["metadata"])

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
        return Groups(self.fisher, self.group_means, group_sizes(self.num_samples, len(self.group_means)))

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
            f"{self.head.protocol} {self.head.metric} {self.head.best_score:.1%} of {self.head.num_outputs} outputs, "
            f"probe {self.probe.name} {self.probe.weights})"
        )

    def __str__(self) -> str:
        """Name, size, norm with its standard error, head and settings, one per line, and what to call next."""
        norm = f"{self.norm:.4g}"
        if self.group_means is not None:
            norm += f" ± {self.groups.norm_error():.2g}"
        images = f"{self.num_samples:,} images" + (f", {self.num_skipped:,} unreadable" if self.num_skipped else "")
        what = self.settings.loss_object.name.replace("_", "-")
        return "\n".join(
            (
                f"Task2Vec embedding of {self.name!r}: {len(self):,} filters of {self.probe.name} {self.probe.weights}",
                f"  norm   {norm} nats² per weight² (how hard the task is), from {images}",
                f"  head   {self._head_line()}",
                f"  made   {self.settings.estimator} estimator, {what} loss, seed {self.settings.seed}",
                "  next   distance_matrix([this, …]), embedding.save(FILE), Library.nearest(embedding)",
            )
        )

    def _head_line(self) -> str:
        """How well the head does, on images that it has not seen where there are such."""
        head = self.head
        line = f"{head.protocol} {head.metric} {head.best_score:.1%}, NLL {head.best_nll:.3g} nats; "
        if head.held_out_score is not None:
            line += f"in-sample {head.score:.1%}, {head.nll:.3g} nats; "
        return f"{line}{head.num_outputs} outputs"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the embedding as safetensors, atomically.

        The same embedding always gives the same bytes. Any safetensors reader can read the tensors; the
        rest is JSON in the metadata, with a SHA-256 over the whole file.

        Args:
            path: The file, usually ``*.safetensors``. Its folder must exist; an existing file is replaced.

        Raises:
            OSError: If the file could not be written; an existing file is not changed.
        """
        digest = hashlib.sha256(self._encode(_BLANK_DIGEST)).hexdigest()
        with atomic_path(path) as temporary:
            temporary.write_bytes(self._encode(digest))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embedding:
        """Return the embedding that ``save`` wrote, bit for bit.

        Args:
            path: The file.

        Raises:
            ValueError: If there is no such file, it is not an embedding, it is damaged in any byte, or a newer
                version of this package wrote it.
        """
        record, raw = _read(Path(path).expanduser())
        fields = record["embedding"] if record["format"] >= 3 else _from_format_2(record["embedding"])
        tensors = safetensors.torch.load(raw)
        fields |= {field: tensors[field] for field in _TENSORS if field in tensors}
        fields["layers"] = tuple(Layer(**layer) for layer in fields["layers"])
        fields["probe"] = ProbeInfo(**fields["probe"])
        fields["head"] = HeadInfo(**fields["head"])
        fields["settings"] = EmbedSettings.from_json(fields["settings"])
        return cls(**fields)

    def _fields(self) -> dict[str, Any]:
        """Everything but the tensors, as plain dictionaries and lists."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in _TENSORS]
        fields = {name: getattr(self, name) for name in names}
        fields["layers"] = [dataclasses.asdict(layer) for layer in self.layers]
        fields["probe"] = dataclasses.asdict(self.probe)
        fields["head"] = dataclasses.asdict(self.head)
        fields["settings"] = self.settings.to_json()
        return fields

    def _encode(self, digest: str) -> bytes:
        """The file's bytes, with ``digest`` as its checksum."""
        text = _to_json({"format": FORMAT_VERSION, "sha256": digest, "embedding": self._fields()})
        tensors = {field: getattr(self, field) for field in _TENSORS if getattr(self, field) is not None}
        return safetensors.torch.save(tensors, metadata={_METADATA_KEY: text})


def _from_format_2(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a file of format 1 or 2, which had one dictionary for settings, probe and task: ``recipe``."""
    recipe, head = fields.pop("recipe"), fields["head"]
    fields["probe"] |= {"head": recipe.pop("head_layer", ""), "preprocess": recipe.pop("preprocess", None)}
    fields["head"] = {_RENAMED.get(key, key): value for key, value in head.items() if key not in _OF_HEAD_SETTINGS}
    fields |= {
        "prior_scale": recipe.pop("prior_scale", None),
        "epoch_nll": recipe.pop("variational_nll", ()),
        "task_digest": recipe.pop("task_digest", None),
        "metadata": recipe.pop("task_metadata", None) or {},
        "version": recipe.pop("version", ""),
        "settings": settings_of_format_2(recipe, {key: head[key] for key in _OF_HEAD_SETTINGS}),
    }
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
    bad = ~(torch.isfinite(value) & (value >= 0))
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(
            f"Embedding: expected {field} to be finite and not negative, got {float(value[index])} at index "
            f"{index} ({int(bad.sum())} such of {value.numel()}); look for NaN or infinite samples."
        )
    return value.detach().clone(memory_format=torch.contiguous_format)


def _check_layers(layers: tuple[Layer, ...], size: int) -> None:
    """Refuse layers that leave a gap, overlap, share a name or end elsewhere than at K."""
    expected = 0
    for layer in layers:
        if layer.kind not in get_args(LayerKind):
            raise ValueError(f"Embedding: expected a layer kind in {get_args(LayerKind)}, got {layer}.")
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


def _to_json(value: dict[str, Any]) -> str:
    """One way to write it down, in ASCII: a name from a file system that is no UTF-8 survives."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Embedding: expected fields that JSON can hold (str, int, bool, finite float, list, dict), got "
            f"something else ({error}); convert it first."
        ) from error


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


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """The record in a file's metadata and the file's bytes, once every one of them is known to be sound."""
    if not path.is_file():
        found = "a folder; name one file in it" if path.is_dir() else "no such file"
        raise ValueError(f"Embedding.load: expected an embedding at {path}, found {found}.")
    with path.open("rb") as file:
        # Only the header of a foreign file is read: it may be any size.
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= size <= min(_MAX_HEADER, path.stat().st_size - 8):
            raise ValueError(f"Embedding.load: {path} is not a safetensors file, or it is truncated.")
        header = file.read(size)
        try:
            text = json.loads(header)["__metadata__"][_METADATA_KEY]
        except (ValueError, RecursionError):
            raise ValueError(f"Embedding.load: {path} is not a safetensors file, or it is damaged.") from None
        except (KeyError, TypeError):
            raise ValueError(f"Embedding.load: {path} was not written by Embedding.save.") from None
        raw = start + header + file.read()
    damaged = ValueError(f"Embedding.load: {path} is damaged: the checksum does not fit; embed again.")
    try:
        record = json.loads(text)
        version, digest = record["format"], record["sha256"]
        newer = version > FORMAT_VERSION
        written = digest.encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if newer:
        raise ValueError(
            f"Embedding.load: {path} was written by a newer task2vec_ext (format {version}; this one reads "
            f"up to {FORMAT_VERSION}): upgrade."
        )
    # save() hashed the file with a blank in the digest's place. Of the same length: nothing else is blanked.
    blank = raw.replace(written, _BLANK_DIGEST.encode()) if len(written) == len(_BLANK_DIGEST) else b""
    if hashlib.sha256(blank).hexdigest() != digest:
        raise damaged
    return record, raw
