"""The embedding of a task: a vector, the record of how it was made, and the file that holds both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import safetensors.torch
import torch
from torch import Tensor

from ._util.atomic import atomic_path
from .jackknife import checked_group_means
from .probe.layers import Layer, LayerKind

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

FORMAT_VERSION = 2  # of what older versions would misread; the tensor group_means they need not know
_METADATA_KEY = "task2vec_ext"  # one key only: safetensors does not promise an order of several
_TENSORS = ("fisher", "prior", "group_means")
_BLANK_DIGEST = "0" * 64
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself
_RENAMED = {"num_classes": "num_outputs", "accuracy": "score"}  # fields of the head in files of format 1


@dataclass(frozen=True)
class ProbeInfo:
    """Which network measured the task.

    Args:
        name: Architecture, e.g. ``"resnet34"``.
        weights: Where its weights came from, e.g. ``"IMAGENET1K_V1"``.
        fingerprint: Hash of architecture and weights; equal fingerprints mean equal probes.
    """

    name: str
    weights: str
    fingerprint: str


@dataclass(frozen=True)
class HeadInfo:
    """How the head was fitted and how well it does on the samples it was fitted on.

    Args:
        method: ``"lbfgs"``, ``"adam"``, …
        num_outputs: C classes or labels, or K numbers.
        score: How well it does, at most 1, in the measure that ``metric`` names.
        nll: Mean negative log-likelihood in nats, of an image's label, all of its known labels, or its standardised
            numbers; of a labelled cell of the feature map for ``"dense"``.
        l2: Strength of the L2 penalty.
        class_balanced: Whether every class weighed the same.
        metric: ``"accuracy"`` (share labelled right), ``"mean average precision"`` (over labels), ``"R²"`` (mean over
            targets).
    """

    method: str
    num_outputs: int
    score: float
    nll: float
    l2: float
    class_balanced: bool
    metric: str = "accuracy"


@dataclass(frozen=True, eq=False, repr=False)
class Embedding:
    """A task as the filter-averaged diagonal Fisher of a fixed probe, with everything needed to compare it.

    Args:
        fisher: F, ``[K]`` float64 on the CPU, one number per filter, nats² per weight², none negative.
        prior: The trivial embedding t₀ = c/λ_l² in the same unit, ``[K]`` float64 on the CPU.
        layers: Which entries belong to which layer; they tile ``[0, K)`` in order.
        probe: Which network measured the task.
        head: How the head was fitted.
        recipe: How F was estimated, JSON only: ``loss``, ``estimator``, ``seed``, ``preprocess``,
            ``include_batchnorm``, ``prior_scale`` (c), the package's version, …
        num_samples: N, the number of samples F is the mean over.
        num_skipped: How many samples could not be read and were left out.
        name: What people call the task.
        classes: Names of the C classes in label order, or None.
        group_means: The mean over each of G groups of the samples, ``[G, K]`` float32 on the CPU, from which
            `jackknife` tells how sure F is; the samples were dealt in random order, one to each group in turn. None
            where they were not kept, or are too few.

    Raises:
        TypeError: If a tensor is not a float64 tensor, or another field holds what JSON cannot.
        ValueError: If a shape or count is wrong, an entry negative or not finite, a gap between the layers.
    """

    fisher: Tensor
    prior: Tensor
    layers: tuple[Layer, ...]
    probe: ProbeInfo
    head: HeadInfo
    recipe: dict[str, JSON]
    num_samples: int
    num_skipped: int = 0
    name: str = ""
    classes: tuple[str, ...] | None = None
    group_means: Tensor | None = None

    def __post_init__(self) -> None:
        """Check every field; copies what a caller could change later."""
        for field in ("fisher", "prior"):
            object.__setattr__(self, field, _checked_vector(field, getattr(self, field)))
        if self.prior.shape != self.fisher.shape:
            raise ValueError(
                f"Embedding: expected prior of shape [{len(self)}] like fisher, got {list(self.prior.shape)}."
            )
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
        # Found out now, not when hours of work are to be saved. The recipe becomes what a file gives back.
        object.__setattr__(self, "recipe", json.loads(_to_json(self._fields()))["recipe"])

    @property
    def norm(self) -> float:
        """The complexity of the task, ‖F‖₁ = Σ_o F[o], in nats² per weight²."""
        return float(self.fisher.sum())

    @property
    def precision(self) -> Tensor:
        """The robust objective's optimum in closed form: c·precision = F + t₀, ``[K]`` float64, nats² per weight².

        F shrunk towards the prior, without SGD, from any estimator's F (`task2vec_ext.variational` has the derivation).
        """
        return self.fisher + self.prior

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
        """One line: name, size, samples, norm, head, probe."""
        return (
            f"Embedding({self.name!r}, K={len(self):,}, N={self.num_samples:,}, norm={self.norm:.4g}, "
            f"head {self.head.metric} {self.head.score:.1%} of {self.head.num_outputs} outputs, "
            f"probe {self.probe.name} {self.probe.weights})"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the embedding as safetensors, atomically.

        The same embedding always gives the same bytes. Any safetensors reader can read the tensors; the
        rest is JSON in the metadata, with a SHA-256 over the whole file.

        Args:
            path: The file, by custom ``*.safetensors``. Its folder must exist; an older file is replaced.

        Raises:
            OSError: If the file could not be written; an older file is untouched.
        """
        digest = hashlib.sha256(self._encode(_BLANK_DIGEST)).hexdigest()
        with atomic_path(path) as temporary:
            temporary.write_bytes(self._encode(digest))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embedding:
        """Return the embedding that ``save`` wrote, equal in every bit.

        Args:
            path: The file.

        Raises:
            ValueError: If there is no such file, it is not an embedding, it is damaged in any byte, or a newer
                version of this package wrote it.
        """
        record, raw = _read(Path(path))
        tensors = safetensors.torch.load(raw)
        fields = {**record["embedding"], **{field: tensors[field] for field in _TENSORS if field in tensors}}
        fields["layers"] = tuple(Layer(**layer) for layer in fields["layers"])
        fields["probe"] = ProbeInfo(**fields["probe"])
        fields["head"] = HeadInfo(**{_RENAMED.get(key, key): value for key, value in fields["head"].items()})
        if fields["classes"] is not None:
            fields["classes"] = tuple(fields["classes"])
        return cls(**fields)

    def _fields(self) -> dict[str, Any]:
        """Everything but the tensors, as plain dictionaries and lists."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in _TENSORS]
        fields = {name: getattr(self, name) for name in names}
        fields["layers"] = [dataclasses.asdict(layer) for layer in self.layers]
        fields["probe"] = dataclasses.asdict(self.probe)
        fields["head"] = dataclasses.asdict(self.head)
        return fields

    def _encode(self, digest: str) -> bytes:
        """The file's bytes, with ``digest`` as its checksum."""
        text = _to_json({"format": FORMAT_VERSION, "sha256": digest, "embedding": self._fields()})
        tensors = {field: getattr(self, field) for field in _TENSORS if getattr(self, field) is not None}
        return safetensors.torch.save(tensors, metadata={_METADATA_KEY: text})


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
    if not (-math.inf < head.score <= 1 and math.isfinite(head.nll) and math.isfinite(head.l2)):
        raise ValueError(f"Embedding: expected a score of at most 1 and a finite nll and l2, got {head}.")


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
