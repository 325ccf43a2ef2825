"""Features of image files, kept from one task to the next: tasks of one domain often share images."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from ..data.folder import Files
from ..data.identity import file_key

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from torch import Tensor

    from ..data import Task
    from ..probe.probe import Probe


class FeatureCache:
    """A least-recently-used cache of features in memory, by file, probe and preprocessing.

    Files are identified by path, size and times. A hit saves reading the image and one forward pass; an
    embedding takes the equivalent of about three. Cached features were computed in another batch, which changes an
    embedding by less than 1e-6 (on the CPU, usually not at all).

    Args:
        max_bytes: Most bytes to keep. 256 MiB hold 130,000 images of 512 features (ResNet-18 and -34).

    Raises:
        ValueError: If the limit is negative.
    """

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        """Start empty."""
        if max_bytes < 0:
            raise ValueError(f"FeatureCache: expected max_bytes >= 0, got {max_bytes}.")
        self.max_bytes = max_bytes
        self.bytes = 0
        """Bytes in use."""
        self._rows: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __len__(self) -> int:
        """Return how many images it holds."""
        return len(self._rows)

    def put(self, keys: Sequence[Hashable], features: Tensor) -> None:
        """Keep features.

        Args:
            keys: The n values that `keys` returned before the images were read.
            features: ``[n, D]`` on the CPU.
        """
        for key, row in zip(keys, features, strict=True):
            size = row.numel() * row.element_size()
            if key is None or key in self._rows or size > self.max_bytes:
                continue
            self._rows[key] = row.clone()
            self.bytes += size
            while self.bytes > self.max_bytes:
                _, gone = self._rows.popitem(last=False)
                self.bytes -= gone.numel() * gone.element_size()

    def get(self, keys: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
        """Return which of the images are known, ``[n]`` bool, and the features of those, ``[m, D]``."""
        known = torch.tensor([key in self._rows for key in keys], dtype=torch.bool)
        rows = []
        for key in keys:
            if key in self._rows:
                self._rows.move_to_end(key)
                rows.append(self._rows[key])
        return known, torch.stack(rows) if rows else torch.empty(0, 0)


def keys(task: Task, probe: Probe, indices: Tensor) -> list[Hashable]:
    """Return what the features of each image depend on; None where that is unknown, or the task is not made of files.

    Args:
        task: Whose images.
        probe: Whose features.
        indices: ``[n]``, which images.
    """
    if not isinstance(task.source, Files) or probe.preprocess is None:
        return [None] * len(indices)
    made = repr((probe.fingerprint, probe.head, probe.dtype, json.dumps(probe.preprocess.to_dict()), task.max_value))
    return [file_key(task.source.paths[i], made) for i in indices.tolist()]
