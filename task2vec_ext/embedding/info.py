"""What an embedding keeps of its probe and of its head."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..fisher.cross_fit import CrossFitHead
from ..fisher.head import Head
from ..settings import value_differences

if TYPE_CHECKING:
    from ..probe.probe import Probe


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
