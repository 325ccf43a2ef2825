"""Baselines: what any method of choosing an expert has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..experts import IMAGENET, ExpertFeatures
from .selector import ExpertFacts, Selector, TaskFacts
from .transferability import h_score, knn_accuracy, leep, logme, nce, probe_accuracy


@dataclass(frozen=True)
class Chance(Selector):
    """Any expert, drawn at random. No passes."""

    name: str = "chance"
    why: ClassVar[str] = "is as good as any"

    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        return torch.zeros(len(experts), dtype=torch.float64)


@dataclass(frozen=True)
class ImageNet(Selector):
    """No expert: the probe without fine-tuning, the row `IMAGENET` of an error matrix. No passes."""

    name: str = "imagenet"
    why: ClassVar[str] = "is the probe without fine-tuning"

    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        values = [0 if expert.name == IMAGENET else torch.nan for expert in experts]
        return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class LargestTask(Selector):
    """Always the expert whose task had the most images. No passes.

    On the error matrix of the paper's authors it beats ImageNet and d_sym.
    """

    name: str = "largest_task"
    why: ClassVar[str] = "was trained on the task with the most images"

    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        sizes = [None if expert.task is None else expert.task.num_images for expert in experts]
        return self._scores("a known number of images", task, sizes)


@dataclass(frozen=True)
class Domain(Selector):
    """The expert whose task's images look most alike: cosine of the means of the probe's features. One pass.

    It does not see labels: two tasks over the same images are equal to it (1902.03545's "domain embedding").
    """

    name: str = "domain"
    why: ClassVar[str] = "was trained on the images that look most alike"
    passes_per_task: ClassVar[int | None] = 1

    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        own = task.mean_features
        if own is None:
            raise self._lacking("mean_features", task)
        theirs = [None if expert.task is None else expert.task.mean_features for expert in experts]
        own = own.double()
        cosines = [None if z is None else float(torch.cosine_similarity(own, z.double(), dim=0)) for z in theirs]
        return self._scores("mean_features of its task", task, cosines)


@dataclass(frozen=True)
class Transferability(Selector):
    """A score of every expert's own outputs on the task's images (`transferability`), higher is better. E passes.

    An expert whose head is random has no score that needs its class probabilities.
    """

    why: ClassVar[str] = "gives the outputs that go best with the task's labels"
    passes_per_task: ClassVar[int | None] = None
    score: Callable[[ExpertFeatures], float] = field(repr=False)
    of_classes: bool = False
    """Whether the score is of class probabilities, not of features."""

    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        if task.outputs is None:
            raise self._lacking("the experts' outputs on its images", task)
        outputs = [task.outputs(expert.name) for expert in experts]
        values = [self.score(one) if one.probabilities.shape[1] or not self.of_classes else None for one in outputs]
        return self._scores("class probabilities (their heads are random)", task, values)


BASELINES: tuple[Selector, ...] = (Chance(), ImageNet(), LargestTask(), Domain())
TRANSFERABILITY: tuple[Selector, ...] = (
    Transferability("leep", lambda outputs: leep(outputs.probabilities, outputs.labels), of_classes=True),
    Transferability("nce", lambda outputs: nce(outputs.probabilities.argmax(1), outputs.labels), of_classes=True),
    Transferability("logme", lambda outputs: logme(outputs.features, outputs.labels)),
    Transferability("h_score", lambda outputs: h_score(outputs.features, outputs.labels)),
    Transferability("knn", lambda outputs: knn_accuracy(outputs.features, outputs.labels)),
    Transferability("linear_probe", lambda outputs: probe_accuracy(outputs.features, outputs.labels)),
)
