"""The error of every expert on every task: the matrix that selectors are scored against."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .._util.tables import write_table

IMAGENET = "imagenet"
"""Name of the row of the probe without fine-tuning."""


@dataclass(frozen=True, eq=False)
class ErrorMatrix:
    """The test error of every expert on every task.

    An expert has the name of the task it was trained on; the row `IMAGENET` is the probe without fine-tuning.

    Args:
        errors: ``[E, T]`` float64 in [0, 1] on the CPU; NaN where it was not measured.
        experts: E names, all different.
        tasks: T names, all different.

    Raises:
        ValueError: If the shape does not fit, two names are equal, or an error is outside [0, 1].
        TypeError: If ``errors`` is not a float64 tensor.
    """

    errors: Tensor
    experts: tuple[str, ...]
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check every field, and copy what a caller could change later."""
        object.__setattr__(self, "experts", tuple(self.experts))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not isinstance(self.errors, Tensor) or self.errors.dtype != torch.float64:
            got = self.errors.dtype if isinstance(self.errors, Tensor) else type(self.errors).__name__
            raise TypeError(f"ErrorMatrix: expected errors to be a torch.float64 tensor, got {got}.")
        shape = [len(self.experts), len(self.tasks)]
        if list(self.errors.shape) != shape or 0 in shape:
            raise ValueError(
                f"ErrorMatrix: expected errors of shape [E, T] = {shape} with E, T >= 1, got {list(self.errors.shape)}."
            )
        object.__setattr__(self, "errors", self.errors.detach().cpu().clone())
        for what, names in (("expert", self.experts), ("task", self.tasks)):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice or not all(names):
                raise ValueError(f"ErrorMatrix: expected every {what} to have a name of its own, got {twice or ['']}.")
        for e, t in ((self.errors < 0) | (self.errors > 1)).nonzero().tolist():
            raise ValueError(
                f"ErrorMatrix: expected errors from 0 to 1, got {self.errors[e, t]:g} for expert {self.experts[e]!r} "
                f"on task {self.tasks[t]!r}; divide percentages by 100."
            )

    def row(self, expert: str) -> Tensor:
        """Return one expert's errors, ``[T]`` float64.

        Raises:
            ValueError: If there is no such expert.
        """
        return self.errors[_index(expert, self.experts, "row", "expert")]

    def column(self, task: str) -> Tensor:
        """Return the errors on one task, ``[E]`` float64.

        Raises:
            ValueError: If there is no such task.
        """
        return self.errors[:, _index(task, self.tasks, "column", "task")]

    def select(self, *, experts: Sequence[str] | None = None, tasks: Sequence[str] | None = None) -> ErrorMatrix:
        """Return the errors of some experts (default: all) on some tasks (default: all), in the order given.

        Raises:
            ValueError: If one of them is not in the matrix.
        """
        experts, tasks = self.experts if experts is None else experts, self.tasks if tasks is None else tasks
        rows = [_index(name, self.experts, "select", "expert") for name in experts]
        columns = [_index(name, self.tasks, "select", "task") for name in tasks]
        return ErrorMatrix(self.errors[rows][:, columns], tuple(experts), tuple(tasks))

    def without_own(self) -> ErrorMatrix:
        """Return the matrix with NaN for every expert on its own task, the one of its name."""
        own = torch.tensor([[expert == task for task in self.tasks] for expert in self.experts])
        return ErrorMatrix(self.errors.masked_fill(own, torch.nan), self.experts, self.tasks)

    @classmethod
    def read_csv(cls, file: str | Path) -> ErrorMatrix:
        """Return the matrix of a CSV file: ``expert,TASK,TASK,…``, then a row for each expert.

        Args:
            file: Path of the file. An empty cell or ``nan`` is an error that was not measured.

        Raises:
            ValueError: If there is no such file or it is not such a table; the message names the row.
        """
        path = Path(file)
        if not path.is_file():
            raise ValueError(f"ErrorMatrix.read_csv: expected a CSV file at {path}, found none.")
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            try:
                rows = [row for row in csv.reader(lines) if row]
            except csv.Error as error:
                raise ValueError(f"ErrorMatrix.read_csv: {path} is not CSV: {error}.") from None
        if len(rows) < 2 or len(rows[0]) < 2:
            raise ValueError(
                f"ErrorMatrix.read_csv: expected a header expert,TASK,… and a row for each expert in {path}, "
                f"got {len(rows)} lines."
            )
        tasks = rows[0][1:]
        for number, row in enumerate(rows[1:], 2):
            if len(row) != len(tasks) + 1:
                raise ValueError(
                    f"ErrorMatrix.read_csv: expected {len(tasks) + 1} cells as the header has, got {len(row)} in row "
                    f"{number} of {path}."
                )
        errors = [[_cell(cell, row[0], path) for cell in row[1:]] for row in rows[1:]]
        return cls(torch.tensor(errors, dtype=torch.float64), tuple(row[0] for row in rows[1:]), tuple(tasks))

    def write_csv(self, file: str | Path) -> None:
        """Write a file for `read_csv`, atomically; numbers in full precision."""
        rows = [
            [name, *("" if math.isnan(error) else error for error in row)]
            for name, row in zip(self.experts, self.errors.tolist(), strict=True)
        ]
        write_table(Path(file), ("expert", *self.tasks), rows)


def _index(name: str, names: tuple[str, ...], who: str, what: str) -> int:
    if name not in names:
        raise ValueError(f"ErrorMatrix.{who}: expected one of the {what}s {', '.join(names)}; got {name!r}.")
    return names.index(name)


def _cell(text: str, expert: str, path: Path) -> float:
    try:
        return float(text) if text.strip() else math.nan
    except ValueError:
        raise ValueError(
            f"ErrorMatrix.read_csv: expected numbers or empty cells, got {text!r} in the row of {expert!r} in {path}."
        ) from None
