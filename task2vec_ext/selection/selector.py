"""What a selector is: from what is known of a task and of the experts to a score for every expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..embedding import Embedding
from ..experts import ErrorMatrix, ExpertFeatures

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class TaskFacts:
    """What is known of a task; each selector needs some of it.

    Args:
        name: The task's name.
        embedding: Its embedding, by the one probe that all tasks were embedded with.
        num_images: How many images it has.
        mean_features: Mean of the probe's features over its images, ``[D]``.
        outputs: From an expert's name to that expert's features of the task's images.
    """

    name: str
    embedding: Embedding | None = None
    num_images: int | None = None
    mean_features: Tensor | None = None
    outputs: Callable[[str], ExpertFeatures] | None = None


@dataclass(frozen=True, eq=False)
class ExpertFacts:
    """What is known of an expert.

    Args:
        name: The expert's name.
        task: The task it was trained on; None if that is unknown, or for the probe itself.
    """

    name: str
    task: TaskFacts | None = None

    @property
    def embedding(self) -> Embedding | None:
        """The embedding of the task it was trained on."""
        return None if self.task is None else self.task.embedding


@dataclass(frozen=True)
class Selector(ABC):
    """A way to choose the expert for a task without trying them all.

    Args:
        name: Its name on the command line and in tables.
    """

    name: str
    why: ClassVar[str]
    """Predicate of the sentence that explains its first choice: "EXPERT was trained on the nearest task"."""
    passes_per_task: ClassVar[int | None] = 0
    """Forward passes over the task's images that choosing costs; None: one for each expert."""

    @abstractmethod
    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        """Return a score for every expert, ``[E]`` float64: higher is better, NaN where too little is known.

        Args:
            task: The task to solve.
            experts: E experts to choose from.

        Raises:
            ValueError: If too little is known of the task, or of every expert.
        """

    def rank_all(self, tasks: Sequence[TaskFacts], experts: Sequence[ExpertFacts]) -> Tensor:
        """Return the scores of all experts for each of T tasks, ``[E, T]`` float64.

        Args:
            tasks: The tasks.
            experts: E experts to choose from.

        Raises:
            ValueError: If `rank` would raise it for one of the tasks.
        """
        return torch.stack([self.rank(task, experts).double() for task in tasks], 1)

    def passes(self, num_experts: int) -> int:
        """Return the cost of choosing among E experts in forward passes over the task's images.

        A backward pass down to the inputs counts as another forward pass.
        """
        return num_experts if self.passes_per_task is None else self.passes_per_task

    def fit(self, errors: ErrorMatrix, tasks: Mapping[str, TaskFacts], experts: Mapping[str, ExpertFacts]) -> Self:
        """Return a selector that has learned from the errors of experts on other tasks; by default this one.

        Args:
            errors: Errors of experts on tasks other than the one to solve, NaN for an expert on its own task.
            tasks: The matrix's tasks, by name.
            experts: The matrix's experts, by name.
        """
        return self

    @property
    def learns(self) -> bool:
        """Whether `fit` does anything."""
        return type(self).fit is not Selector.fit

    def fit_parts(
        self,
        errors: ErrorMatrix,
        tasks: Mapping[str, TaskFacts],
        experts: Mapping[str, ExpertFacts],
        parts: Sequence[Sequence[int]],
    ) -> Iterator[Self]:
        """Yield for each part of the matrix's tasks a selector that was fitted to all others.

        Args:
            errors: See `fit`.
            tasks: See `fit`.
            experts: See `fit`.
            parts: Numbers of the tasks that are held out.
        """
        for held_out in parts:
            others = [name for t, name in enumerate(errors.tasks) if t not in set(held_out)]
            yield self.fit(errors.select(tasks=others), tasks, experts) if others else self

    def _embeddings(self, tasks: Sequence[TaskFacts]) -> list[Embedding]:
        """Return the embeddings of tasks, or raise if one has none."""
        for task in tasks:
            if task.embedding is None:
                raise self._lacking("an embedding", task)
        return [task.embedding for task in tasks if task.embedding is not None]

    def _scores(self, what: str, task: TaskFacts, values: Sequence[float | None]) -> Tensor:
        """Return scores as ``[E]`` float64, NaN for None, or raise if no expert has `what` a score is made of."""
        if all(value is None for value in values):
            raise self._no_expert(what, task, len(values))
        return torch.tensor([torch.nan if value is None else value for value in values], dtype=torch.float64)

    def _lacking(self, what: str, task: TaskFacts) -> ValueError:
        return ValueError(f"{self.name}: expected task {task.name!r} with {what}, got it without.")

    def _no_expert(self, what: str, task: TaskFacts, num_experts: int) -> ValueError:
        return ValueError(
            f"{self.name}: expected an expert with {what} to choose from for {task.name!r}, got none among "
            f"{num_experts}."
        )
