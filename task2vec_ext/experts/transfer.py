"""Transfer: the error of every expert on every task, measured, and kept so that no measurement is made twice."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._util.atomic import atomic_path
from ..data import as_task, draw, hold_out, read_labels, subset
from ..fisher.head import HeadMethod, HeadSettings, fit_head
from .errors import IMAGENET, ErrorMatrix
from .expert import Expert
from .features import ExpertFeatures, Extractor, extract
from .finetune import fine_tune
from .recipe import as_recipe

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from .._util.progress import Pass
    from ..data import Task, TaskSource
    from .expert import AnyExpert
    from .recipe import AnyRecipe


def classifier_error(
    train: ExpertFeatures, test: ExpertFeatures, *, method: HeadMethod = "lbfgs", l2: float | None = None, seed: int = 0
) -> float:
    """Return the test error of a linear classifier on an expert's frozen features.

    Args:
        train: What it is fitted to.
        test: What its error is measured on.
        method: ``"lbfgs"``: the convex problem to convergence; ``"adam"``: the recipe of the authors' code (the paper:
            16 epochs, learning rate 1e-4, for more images).
        l2: Penalty of the fit; default: the method's.
        seed: Of ``"adam"``.

    Returns:
        Share of the test images labelled wrong.

    Raises:
        ValueError: If a feature is not finite, or an option impossible.

    Note:
        Features are divided by their root mean square over `train`, one number: the penalty means the same to every
        expert.
    """
    return float(classifier_mistakes(train, test, method=method, l2=l2, seed=seed).double().mean())


def classifier_mistakes(
    train: ExpertFeatures, test: ExpertFeatures, *, method: HeadMethod = "lbfgs", l2: float | None = None, seed: int = 0
) -> Tensor:
    """Return which test images the classifier of `classifier_error` labels wrong.

    Args:
        train: What it is fitted to.
        test: What it is tried on.
        method: As there; as are the others.
        l2: Penalty.
        seed: Of ``"adam"``.

    Returns:
        ``[N]`` bool.
    """
    scale = train.features.double().square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    classes = int(train.labels.max()) + 1
    head = fit_head(train.features.double() / scale, train.labels, classes, method=method, l2=l2, seed=seed)
    return head.logits(test.features.double() / scale).argmax(1) != test.labels


def transfer_errors(
    experts: Mapping[str, AnyExpert],
    tasks: Iterable[TaskSource | tuple[Task, Task]],
    file: str | os.PathLike[str],
    *,
    share: float = 0.5,
    num_samples: int | None = None,
    num_test: int | None = None,
    method: HeadMethod = "lbfgs",
    l2: float | None = None,
    fine_tuning: AnyRecipe | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: bool | Pass | None = None,
) -> ErrorMatrix:
    """Return the test error of every expert on every task, after measuring those that the file does not have.

    Can be killed at any moment and called again, with more experts or tasks, too: a measured error is never measured
    again.

    Args:
        experts: Name → expert or probe; ``{"imagenet": probe, …}`` names the probe without fine-tuning.
        tasks: Each a task, parted here into images to learn from and to test on, or a pair of them already parted.
        file: CSV of the matrix (`ErrorMatrix.write_csv`), written after every error; beside it ``FILE.json`` says how
            they were measured.
        share: Of the images of a task that are to learn from, in (0, 1).
        num_samples: At most so many images a task to learn from, but at least one a class; default: all.
        num_test: At most so many to test on, as `num_samples`; default: all.
        method: Of the classifier on frozen features: see `classifier_error`.
        l2: Its penalty.
        fine_tuning: Instead of a classifier: fine-tune every expert to every task by this recipe.
        seed: Of every random choice.
        device: Where experts run; default: CUDA where there is one.
        dtype: Of the forward pass (autocast); default: bfloat16 on a GPU that has it, else float32.
        batch_size: Images at a time.
        num_workers: Processes that decode images; 0: this one.
        cache: Folder that keeps features (`Extractor`).
        progress: Show progress bars; default: where standard error is a terminal.

    Returns:
        The matrix of these experts and tasks.

    Raises:
        ValueError: If there are no experts or tasks, two tasks have one name, or the file's errors were measured in
            another way, of another expert or of other images.

    Note:
        Tasks whose images are not files of known names (`Task.digest` is None) are known by their name alone. One
        process at a time may write a file.

    Source:
        Achille et al., Task2Vec, ICCV 2019 (arXiv 1902.03545), §5.
    """
    parted = [task if isinstance(task, tuple) else _parted(task, share, seed) for task in tasks]
    if not experts or not parted:
        raise ValueError(
            f"transfer_errors: expected at least one expert and one task, got {len(experts)} and {len(parted)}."
        )
    pairs = {train.name: (_drawn(train, num_samples, seed), _drawn(test, num_test, seed)) for train, test in parted}
    if len(pairs) < len(parted):
        raise ValueError("transfer_errors: expected tasks of different names, got one twice; rename it.")
    recipe = None if fine_tuning is None else as_recipe(fine_tuning)
    how = {
        "method": method if recipe is None else None,
        "l2": HeadSettings(method, l2).l2 if recipe is None else None,
        "fine_tuning": None if recipe is None else asdict(recipe),
        "seed": seed,
    }
    table = _Table.open(
        Path(file),
        how,
        {name: _fingerprint(expert) for name, expert in experts.items()},
        {name: [part.digest() or "" for part in pair] for name, pair in pairs.items()},
    )
    extractor = Extractor(
        experts,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        num_workers=num_workers,
        cache=cache,
        progress=progress,
    )
    for name, (train, test) in pairs.items():
        todo = [expert for expert in experts if table.lacks(expert, name)]
        if not todo:
            continue
        if recipe is None:
            seen = extractor(train, only=todo), extractor(test, only=todo)
            for expert in todo:
                error = classifier_error(seen[0][expert], seen[1][expert], method=method, l2=l2, seed=seed)
                table.put(expert, name, error)
            continue
        for expert in todo:
            given = experts[expert]
            start = given.probe() if isinstance(given, Expert) else given
            fitted, rest = hold_out(train, 0.8, seed=seed)
            options: dict[str, Any] = {
                "device": device,
                "dtype": dtype,
                "num_workers": num_workers,
                "progress": progress,
            }
            tuned = fine_tune(start, fitted, rest, recipe, seed=seed, **options).probe
            result = extract(tuned, test, batch_size=batch_size, **options)
            table.put(expert, name, _error(result.probabilities, result.labels))
    return table.matrix.select(experts=list(experts), tasks=list(pairs))


def transfer_gain(errors: ErrorMatrix, reference: str | None = IMAGENET) -> Tensor:
    """Return the transfer gain ``D(a→b) = (ℓ_{a→b} − ℓ_b) / ℓ_b`` of every expert a on every task b.

    Args:
        errors: ℓ_{a→b}.
        reference: The expert whose errors are ℓ_b, without transfer; None: each task's own expert.

    Returns:
        ``[E, T]`` float64; below 0: the expert helps. NaN where an error was not measured, or a task has no own expert;
        ±inf or NaN where ℓ_b = 0.

    Raises:
        ValueError: If there is no such expert.

    Source:
        Achille et al. 2019, §4 (transfer distance).
    """
    if reference is not None:
        base = errors.row(reference)
    else:
        own = [errors.row(task)[t] if task in errors.experts else math.nan for t, task in enumerate(errors.tasks)]
        base = torch.tensor([float(value) for value in own], dtype=torch.float64)
    return (errors.errors - base) / base


class _Table:
    """The matrix on the disk, and how its errors were measured."""

    def __init__(self, file: Path, record: dict[str, Any], matrix: ErrorMatrix) -> None:
        self.file, self.record, self.matrix = file, record, matrix

    @classmethod
    def open(cls, file: Path, how: dict[str, Any], experts: dict[str, str], tasks: dict[str, list[str]]) -> _Table:
        """Read what was measured, make sure that it goes with what is to come, and make room for that."""
        record: dict[str, Any] = {"how": how, "experts": experts, "tasks": tasks}
        beside = file.with_name(file.name + ".json")
        old = ErrorMatrix.read_csv(file) if file.exists() else None
        if old is not None:
            before = json.loads(beside.read_text()) if beside.exists() else {"how": None, "experts": {}, "tasks": {}}
            differ = ["the way of measuring"] if before["how"] != how else []
            for kind in ("experts", "tasks"):
                known = before[kind]
                differ += [name for name, value in record[kind].items() if known.get(name, value) != value]
                record[kind] = {**known, **record[kind]}
            if differ:
                raise ValueError(
                    f"transfer_errors: expected the errors in {file} to be of the same measurement, got another for "
                    f"{', '.join(differ[:5])}; remove the file, or name another."
                )
        names = tuple(record["experts"]), tuple(record["tasks"])
        errors = torch.full((len(names[0]), len(names[1])), math.nan, dtype=torch.float64)
        table = cls(file, record, ErrorMatrix(errors, *names))
        if old is not None:
            rows, columns = (
                [known.index(name) for name in wanted]
                for known, wanted in zip(names, (old.experts, old.tasks), strict=True)
            )
            errors[torch.tensor(rows)[:, None], torch.tensor(columns)] = old.errors
            table.matrix = ErrorMatrix(errors, *names)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(beside) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        return table

    def lacks(self, expert: str, task: str) -> bool:
        """Tell whether an error is still to be measured."""
        return bool(self._cell(self.matrix.errors, expert, task).isnan())

    def put(self, expert: str, task: str, error: float) -> None:
        """Keep an error."""
        errors = self.matrix.errors.clone()
        self._cell(errors, expert, task).fill_(error)
        self.matrix = ErrorMatrix(errors, self.matrix.experts, self.matrix.tasks)
        self.matrix.write_csv(self.file)

    def _cell(self, errors: Tensor, expert: str, task: str) -> Tensor:
        return errors[self.matrix.experts.index(expert), self.matrix.tasks.index(task)]


def _parted(task: TaskSource, share: float, seed: int) -> tuple[Task, Task]:
    source = as_task(task)
    train, test = hold_out(source, share, seed=seed)
    return as_task(train, name=source.name), as_task(test, name=source.name)


def _drawn(task: Task, num_samples: int | None, seed: int) -> Task:
    """Return a draw in proportion to the classes, with at least one image of each."""
    labels = read_labels(task)
    fewest = len(set(labels.tolist()))
    return subset(task, draw(labels, None if num_samples is None else max(num_samples, fewest), seed))


def _fingerprint(expert: AnyExpert) -> str:
    return expert.card.fingerprint if isinstance(expert, Expert) else expert.fingerprint


def _error(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) != labels).double().mean())
