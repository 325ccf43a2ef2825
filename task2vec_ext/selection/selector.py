"""What a selector is: from what is known of a task and of the experts to a score for every expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

    from ..embedding import Embedding
    from ..experts.errors import ErrorMatrix


class Outputs(Protocol):
    """What an expert makes of a task's images."""

    @property
    def features(self) -> Tensor:
        """``[N, D]``."""

    @property
    def probabilities(self) -> Tensor:
        """``[N, C_s]``: softmax over the expert's own classes."""

    @property
    def labels(self) -> Tensor:
        """The task's, ``[N]`` int64."""


@dataclass(frozen=True, eq=False)
class TaskFacts:
    """What is known of a task; a selector says which of it it needs.

    Args:
        name: Of the task.
        embedding: Of the task, by the one probe that all tasks were embedded with.
        num_images: How many images it has.
        mean_features: Mean of the probe's features over its images, ``[D]``.
        outputs: What the expert of a name makes of its images, computed when it is asked for.
    """

    name: str
    embedding: Embedding | None = None
    num_images: int | None = None
    mean_features: Tensor | None = None
    outputs: Callable[[str], Outputs] | None = None


@dataclass(frozen=True, eq=False)
class ExpertFacts:
    """What is known of an expert.

    Args:
        name: Of the expert.
        task: That it was trained on; None where that is not known, or where it is the probe itself.
    """

    name: str
    task: TaskFacts | None = None


@dataclass(frozen=True)
class Selector(ABC):
    """A way to choose the expert for a task without trying them all.

    Args:
        name: As the command line and the table call it.
    """

    name: str
    why: ClassVar[str]
    """What the expert it puts first has, as a sentence goes on after the expert's name."""

    @abstractmethod
    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        """Return a score for every expert: higher is better.

        Args:
            task: To be solved.
            experts: E to choose from.

        Returns:
            ``[E]`` float64; NaN for an expert of which too little is known.

        Raises:
            ValueError: If too little is known of the task, or of every expert.
        """

    @abstractmethod
    def passes(self, num_experts: int) -> float:
        """Return what choosing costs: forward passes over the task's images.

        Args:
            num_experts: E.

        Returns:
            A backward pass down to the inputs counts as another forward pass.
        """

    def fit(self, errors: ErrorMatrix, tasks: Mapping[str, TaskFacts], experts: Mapping[str, ExpertFacts]) -> Self:
        """Return the selector, adapted to the errors of experts on other tasks where it learns from them.

        Args:
            errors: Of experts on tasks, without the task that is to be solved; an expert's own task is NaN.
            tasks: By name; those of the matrix.
            experts: By name; those of the matrix.

        Returns:
            A selector; this one where it learns nothing.
        """
        return self


def scores(selector: Selector, what: str, task: TaskFacts, values: Sequence[float | None]) -> Tensor:
    """Return scores as ``[E]`` float64, once one expert at least has any.

    Args:
        selector: Whose.
        what: An expert needs, for the message.
        task: To be solved.
        values: One for each expert; None where the expert lacks it.

    Raises:
        ValueError: If none has.
    """
    if all(value is None for value in values):
        raise unknown(selector, what, task, len(values))
    return torch.tensor([torch.nan if value is None else value for value in values], dtype=torch.float64)


def lacking(selector: Selector, what: str, task: TaskFacts) -> ValueError:
    """Return the error of a task of which too little is known.

    Args:
        selector: That needs it.
        what: It needs.
        task: Which task.
    """
    return ValueError(f"{selector.name}: expected task {task.name!r} with {what}, got it without.")


def unknown(selector: Selector, what: str, task: TaskFacts, num_experts: int) -> ValueError:
    """Return the error of experts of all of which too little is known.

    Args:
        selector: That chooses.
        what: It needs of one at least.
        task: For which.
        num_experts: How many there are.
    """
    return ValueError(
        f"{selector.name}: expected an expert with {what} to choose from for {task.name!r}, got none among "
        f"{num_experts}."
    )
