"""Where and how an embedding is computed; nothing here changes its numbers by more than rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .._util.numbers import whole
from .._util.words import check_word
from ..words import OnError

if TYPE_CHECKING:
    import torch

    from .._util.progress import Pass
    from ..data import ImageCache
    from .feature_cache import FeatureCache


@dataclass(frozen=True)
class Work:
    """Where and how an embedding is computed.

    Args:
        device: Where the probe runs; default: where the module is.
        batch_size: Images at a time.
        num_workers: Processes that decode images; 0: this one. Default: for a GPU its share of the cores, else 0.
        on_error: An image that cannot be read raises, or is left out and counted (``"skip"``).
        progress: Show a progress bar; default: where standard error is a terminal. A function shows it its own way.
        image_cache: Keeps decoded images for later passes and tasks; default: one of 1 GiB and a temporary file, for
            this task alone. ``ImageCache(0, 0)`` decodes in every pass.
        feature_cache: Features of an earlier task; images whose files it knows are not passed through the probe again.
        cuda_graphs: On a GPU, record the Fisher pass of a full batch once and replay it: for GPUs that wait for the
            processor between small kernels. It takes the memory of a second batch. Not for ``"variational"``, and not
            where a network cannot be replayed, with a warning.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If a number is out of range, or `on_error` neither word.
    """

    device: str | torch.device | None = None
    batch_size: int = 32
    num_workers: int | None = None
    on_error: OnError = "raise"
    progress: bool | Pass | None = None
    image_cache: ImageCache | None = None
    feature_cache: FeatureCache | None = None
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        """Check numbers and words."""
        check_word("fisher_embed", "on_error", self.on_error, OnError)
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole("fisher_embed", name, value, least))

    def on(self, device: torch.device) -> Work:
        """Return the same work on a device."""
        return replace(self, device=device)
