"""The error of every expert on every task: the matrix that selectors are scored against."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .._util.tables import read_table, write_table
from .._util.words import check_word
from ..words import Rows

IMAGENET = "imagenet"
"""Name of the row of the probe without fine-tuning."""

_SIDES: dict[str, Rows] = {  # first cell of a header -> what is below it
    **dict.fromkeys(("expert", "experts", "model", "models", "network", "networks", "source", "sources"), "experts"),
    **dict.fromkeys(("task", "tasks", "dataset", "datasets", "data set", "target", "targets"), "tasks"),
}  # fmt: skip
_SHOWN = 10  # names that a message lists


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
        return self.errors[_indices([expert], self.experts, "row", "expert")[0]]

    def column(self, task: str) -> Tensor:
        """Return the errors on one task, ``[E]`` float64.

        Raises:
            ValueError: If there is no such task.
        """
        return self.errors[:, _indices([task], self.tasks, "column", "task")[0]]

    def select(self, *, experts: Sequence[str] | None = None, tasks: Sequence[str] | None = None) -> ErrorMatrix:
        """Return the errors of some experts (default: all) on some tasks (default: all), in the order given.

        Raises:
            ValueError: If one of them is not in the matrix.
        """
        experts, tasks = self.experts if experts is None else experts, self.tasks if tasks is None else tasks
        rows = _indices(experts, self.experts, "select", "expert")
        columns = _indices(tasks, self.tasks, "select", "task")
        return ErrorMatrix(self.errors[rows][:, columns], tuple(experts), tuple(tasks))

    def without_own(self) -> ErrorMatrix:
        """Return the matrix with NaN for every expert on its own task, the one of its name."""
        places, errors = {task: place for place, task in enumerate(self.tasks)}, self.errors.clone()
        for row, expert in enumerate(self.experts):
            if expert in places:
                errors[row, places[expert]] = torch.nan
        return ErrorMatrix(errors, self.experts, self.tasks)

    @classmethod
    def read_csv(cls, file: str | Path, *, rows: Rows | None = None) -> ErrorMatrix:
        """Return the matrix of a CSV file: ``expert,TASK,TASK,…``, then a row for each expert; or with a row a task.

        Args:
            file: Path of the file. An empty cell or ``nan`` is an error that was not measured. Errors may be
                percentages.
            rows: What the rows are; default: what the header's first cell says, else experts. `read_errors` also
                returns what was decided.

        Raises:
            ValueError: If there is no such file or it is not such a table; the message names the row.
        """
        return read_errors(file, rows)[0]

    def write_csv(self, file: str | Path) -> None:
        """Write a file for `read_csv`, atomically; numbers in full precision."""
        rows = [
            [name, *("" if math.isnan(error) else error for error in row)]
            for name, row in zip(self.experts, self.errors.tolist(), strict=True)
        ]
        write_table(Path(file).expanduser(), ("expert", *self.tasks), rows)


def read_errors(file: str | Path, rows: Rows | None = None) -> tuple[ErrorMatrix, tuple[str, ...]]:
    """Return the matrix of a CSV file, and how it was understood: a sentence for each decision.

    Args:
        file: See `ErrorMatrix.read_csv`.
        rows: See `ErrorMatrix.read_csv`.

    Raises:
        ValueError: If there is no such file or it is not such a table; the message names the row.
    """
    if rows is not None:
        check_word("read_errors", "rows", rows, Rows)
    path = Path(file).expanduser()
    table = read_table("ErrorMatrix.read_csv", path)
    if len(table) < 2 or len(table[0]) < 2:
        raise ValueError(
            f"ErrorMatrix.read_csv: expected a header expert,TASK,… and a row for each expert in {path}, "
            f"got {len(table)} lines."
        )
    (corner, *columns), names = table[0], [row[0] for row in table[1:]]
    for number, row in enumerate(table[1:], 2):
        if len(row) != len(table[0]):
            raise ValueError(
                f"ErrorMatrix.read_csv: expected {len(table[0])} cells as the header has, got {len(row)} in row "
                f"{number} of {path}."
            )
    errors = torch.tensor([[_cell(cell, row[0], path) for cell in row[1:]] for row in table[1:]], dtype=torch.float64)
    decided, sides = [], rows or _SIDES.get(corner.lower())
    if sides is None:
        sides = "tasks" if IMAGENET in columns and IMAGENET not in names else "experts"
        why = f"the header's first cell, {corner!r}, does not say; {'experts' if sides == 'tasks' else 'tasks'}: --rows"
    else:
        why = f"the header's first cell is {corner!r}" if rows is None else "as asked"
    decided.append(f"rows are {sides} ({why})")
    known = errors[~errors.isnan()]
    signed = any(cell.endswith("%") for row in table[1:] for cell in row[1:])
    high = float(known.max()) if len(known) else 0.0
    if signed or (1 < high <= 100 and (known > 1).double().mean() >= 0.5):
        errors = errors / 100
        decided.append("errors are percentages" + ("" if signed else f" (most are over 1, the largest is {high:g})"))
    experts, tasks = (columns, names) if sides == "tasks" else (names, columns)
    return ErrorMatrix(errors.T if sides == "tasks" else errors, tuple(experts), tuple(tasks)), tuple(decided)


def read_sizes(file: str | Path) -> dict[str, int]:
    """Return task → number of images of a CSV file with two columns, the second of which is called ``images``.

    Args:
        file: Path of the file.

    Raises:
        ValueError: If there is no such file or it is not such a table; the message names the row.
    """
    path = Path(file).expanduser()
    header, *rows = read_table("read_sizes", path) or [[]]
    if len(header) != 2 or header[1].lower() not in ("images", "num_images"):
        raise ValueError(f"read_sizes: expected a header task,images in {path}, got {','.join(header) or 'nothing'}.")
    for number, row in enumerate(rows, 2):
        if len(row) != 2 or not row[1].isdecimal():
            raise ValueError(
                f"read_sizes: expected a task and a whole number of images in row {number} of {path}, got {row}."
            )
    return {name: int(images) for name, images in rows}


def _indices(wanted: Sequence[str], names: tuple[str, ...], who: str, what: str) -> list[int]:
    places = {name: place for place, name in enumerate(names)}
    if unknown := [name for name in wanted if name not in places]:
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        raise ValueError(f"ErrorMatrix.{who}: expected one of the {what}s {shown}; got {unknown[0]!r}.")
    return [places[name] for name in wanted]


def _cell(text: str, expert: str, path: Path) -> float:
    try:
        return float(text.removesuffix("%")) if text else math.nan
    except ValueError:
        raise ValueError(
            f"ErrorMatrix.read_csv: expected numbers or empty cells, got {text!r} in the row of {expert!r} in {path}."
        ) from None
