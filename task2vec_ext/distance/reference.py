"""What tasks of a library have in common: the reference of the distance ``library_correlation``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._util.atomic import atomic_path
from .._util.warnings import Task2VecWarning
from ..embedding import Embedding, ProbeInfo
from ..embedding.file import decoded, encoded
from ..probe.layers import Layer
from ..settings import EmbedSettings
from .comparable import check_comparable
from .rules import unit_mean

if TYPE_CHECKING:
    from typing_extensions import Self

FLOOR = 1e-3
"""Added to F of unit mean before the logarithm, because filters may be dead. 1e-4 to 1e-1 do as well
(docs/library_distance.md)."""

FEWEST = 3
"""Tasks of a reference. With two, all distances between them are 2, whatever the tasks."""

ENOUGH = 10
"""Tasks with which libraries are searched as well as with fifty (docs/library_distance.md); fewer warn."""


@dataclass(frozen=True, eq=False, repr=False)
class Reference:
    """The mean log-Fisher of many tasks, which ``library_correlation`` measures every task's difference from.

    Args:
        mean: The mean of log(F / mean F + floor) over the tasks, ``[K]`` float64 on the CPU.
        num_tasks: How many they are.
        probe: The network that they were embedded with.
        layers: Which entries belong to which layer.
        settings: The settings of their embeddings.
        floor: Added to F of unit mean before the logarithm.

    Raises:
        ValueError: If there are too few tasks, or the mean does not fit the layers.
    """

    mean: Tensor
    num_tasks: int
    probe: ProbeInfo
    layers: tuple[Layer, ...]
    settings: EmbedSettings
    floor: float = FLOOR

    def __post_init__(self) -> None:
        """Check what distances depend on."""
        if self.num_tasks < FEWEST:
            raise ValueError(
                f"Reference: expected {FEWEST} tasks or more, got {self.num_tasks}; add tasks, or compare by "
                "'sym_scaled', which needs no reference."
            )
        object.__setattr__(self, "layers", tuple(self.layers))
        K = self.layers[-1].stop if self.layers else 0
        if self.mean.dtype != torch.float64 or self.mean.shape != (K,) or not self.mean.isfinite().all():
            raise ValueError(
                f"Reference: expected a finite float64 mean of shape [{K}], as the layers have filters, got "
                f"{self.mean.dtype} of shape {list(self.mean.shape)}; make it with Reference.of."
            )
        if not self.floor > 0:
            raise ValueError(f"Reference: expected floor > 0, got {self.floor}.")

    @classmethod
    def of(cls, embeddings: Iterable[Embedding]) -> Self:
        """Return the reference of some tasks; `Library.reference` returns that of a library.

        Args:
            embeddings: Of three tasks or more, better ten, comparable, none all zero. Each is read once.

        Raises:
            ValueError: If there are too few, two of them do not compare, or one is all zero.
        """
        every = iter(embeddings)
        if (first := next(every, None)) is None:
            raise ValueError(f"Reference: expected {FEWEST} tasks or more, got none.")

        def rows() -> Iterator[Tensor]:
            yield first.fisher.float()  # as a library keeps it, so that both give the same reference
            for one in every:
                check_comparable([first, one])
                yield one.fisher.float()

        return cls.of_rows(rows(), first)

    @classmethod
    def of_rows(cls, rows: Iterable[Tensor], like: Embedding) -> Self:
        """Return the reference of tasks whose Fishers ``[K]`` are given, all embedded as `like` was.

        Args:
            rows: The Fisher of each task, float32 on the CPU.
            like: The embedding of one.

        Raises:
            ValueError: If there are too few, or one is all zero.
        """
        total, count = torch.zeros(len(like), dtype=torch.float64), 0
        for row in rows:
            if not row.any():
                raise ValueError(f"Reference: expected no embedding of zeros, number {count} is one; leave it out.")
            total += log_fisher(row[None].double(), FLOOR)[0]
            count += 1
        if FEWEST <= count < ENOUGH:
            warnings.warn(
                f"Reference: expected {ENOUGH} tasks or more for the distance 'library_correlation', got {count}; "
                "their mean says more of these tasks than of tasks in general. Add tasks, or name the reference of a "
                "larger library (on the command line --reference).",
                Task2VecWarning,
                stacklevel=2,
            )
        # Rounded, so that the order of the tasks, which moves the last bits of a sum, does not show in the digest.
        mean = (total / max(count, 1)).float().double()
        return cls(mean, count, like.probe, like.layers, like.settings)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the reference of {self.num_tasks} tasks"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in it: two equal ones give equal distances."""
        return self._encoded[1]

    def differences(self, fisher: Tensor) -> Tensor:
        """Return log(F / mean F + floor) of some tasks minus the mean of the library, ``[T, K]`` float64.

        Args:
            fisher: F of T tasks, ``[T, K]`` float64 on the CPU, no row all zero.
        """
        return log_fisher(fisher, self.floor) - self.mean

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the reference as safetensors, atomically; the same reference always gives the same bytes.

        Args:
            path: The file. Its folder must exist; an existing file is replaced.

        Raises:
            OSError: If the file could not be written; an existing file is not changed.
        """
        with atomic_path(Path(path).expanduser()) as temporary:
            temporary.write_bytes(self._encoded[0])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the reference that ``save`` wrote, bit for bit.

        Args:
            path: The file.

        Raises:
            ValueError: If it is no reference, damaged in any byte, or of a newer version.
        """
        record, tensors = decoded("reference", Path(path).expanduser())
        fields = record["reference"]
        fields["probe"] = ProbeInfo(**fields["probe"])
        fields["layers"] = tuple(Layer(**layer) for layer in fields["layers"])
        fields["settings"] = EmbedSettings.from_json(fields["settings"])
        return cls(mean=tensors["mean"], **fields)

    @property
    def _encoded(self) -> tuple[bytes, str]:
        fields: dict[str, Any] = {
            "num_tasks": self.num_tasks,
            "probe": asdict(self.probe),
            "layers": [asdict(layer) for layer in self.layers],
            "settings": self.settings.to_json(),
            "floor": self.floor,
        }
        return encoded("reference", fields, {"mean": self.mean})

    def __len__(self) -> int:
        """K, the number of filters."""
        return self.mean.numel()

    def __repr__(self) -> str:
        """One line: tasks, size, probe, digest."""
        return (
            f"Reference({self.num_tasks:,} tasks, K={len(self):,}, probe {self.probe.name} {self.probe.weights}, "
            f"{self.digest[:12]})"
        )


def log_fisher(fisher: Tensor, floor: float) -> Tensor:
    """Return log(F / mean F + floor), ``[T, K]`` float64.

    Args:
        fisher: ``[T, K]`` float64, no row all zero.
        floor: In units of the mean.
    """
    return unit_mean(fisher).add_(floor).log_()
