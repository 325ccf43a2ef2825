"""Transfer: the error of every expert on every task, measured once and kept in a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._util.atomic import atomic_path
from .._util.pool import Pool
from .._util.words import check_word
from ..data import Preprocess, Task, TaskSource, as_task, check_labels, draw, hold_out, read_labels, subset
from ..fisher.head import ADAM_L2, HeadSettings, fit_head
from ..words import HeadMethod
from .errors import IMAGENET, ErrorMatrix
from .expert import AnyExpert, Expert, as_probe
from .features import ExpertFeatures, Extractor
from .finetune import fine_tune
from .network import RunOptions
from .recipe import AnyRecipe, Recipe, as_recipe

if TYPE_CHECKING:
    from typing_extensions import Unpack


CLASSIFIER_L2: dict[HeadMethod, float] = {"lbfgs": 1e-2, "adam": ADAM_L2}
"""Default penalties of a classifier on an expert's features, which have a root mean square of 1."""


def classifier_error(
    train: ExpertFeatures, test: ExpertFeatures, *, method: HeadMethod = "lbfgs", l2: float | None = None, seed: int = 0
) -> float:
    """Return the share of test images that a linear classifier on an expert's fixed features labels wrong.

    Args:
        train: Features that it is fitted to.
        test: Features that it is tested on.
        method: ``"lbfgs"``: the convex problem to convergence; ``"adam"``: as in the authors' code (the paper: 16
            epochs, learning rate 1e-4, for more images).
        l2: Penalty of the fit; default: `CLASSIFIER_L2`.
        seed: Seed of ``"adam"``.

    Raises:
        ValueError: If a feature is not finite, or an option impossible.

    Note:
        Features are divided by their root mean square over `train`, one number, so that the penalty means the same to
        every expert.
    """
    return float(classifier_mistakes(train, test, method=method, l2=l2, seed=seed).double().mean())


def classifier_mistakes(
    train: ExpertFeatures, test: ExpertFeatures, *, method: HeadMethod = "lbfgs", l2: float | None = None, seed: int = 0
) -> Tensor:
    """Return which test images the classifier of `classifier_error` labels wrong, ``[N]`` bool."""
    scale = train.features.double().square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    classes = int(train.labels.max()) + 1
    l2 = CLASSIFIER_L2.get(method) if l2 is None else l2  # an unknown method is refused below
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
    batch_size: int = 64,
    cache: str | os.PathLike[str] | None = None,
    ray: str | bool | None = None,
    **options: Unpack[RunOptions],
) -> ErrorMatrix:
    """Return the test errors of these experts on these tasks, after measuring those that are not in the file.

    It can be killed at any moment and called again, also with more experts or tasks: no error is measured twice.

    Args:
        experts: Name → expert or probe; ``{"imagenet": probe, …}`` names the probe without fine-tuning.
        tasks: Tasks, split here into training and test images, or pairs of tasks that are split already.
        file: CSV of the matrix (`ErrorMatrix.write_csv`), written after every error; ``FILE.json`` beside it says how
            the errors were measured.
        share: Share of a task's images to train on, in (0, 1).
        num_samples: At most this many training images a task, but at least one a class; default: all.
        num_test: At most this many test images a task, but at least one a class; default: all.
        method: Fit of the classifier on fixed features; see `classifier_error`.
        l2: Its penalty.
        fine_tuning: Fine-tune every expert to every task by this recipe, instead of fitting a classifier.
        seed: Seed of every random choice.
        batch_size: Images at a time.
        cache: Folder that keeps features (`Extractor`).
        ray: Address of a Ray cluster whose workers measure, as for `build_library`; experts' folders must be visible
            to them. This process alone writes the file.
        **options: Device, precision and the like; see `RunOptions`.

    Raises:
        ValueError: If there are no experts or tasks, two tasks have one name, labels are not 0…C−1, or the file's
            errors are of another expert, other images or another way of measuring.

    Note:
        Tasks whose images are not files (`Task.digest` is None) are known by name and labels alone. One process at a
        time may write a file.

    Source:
        Achille et al., Task2Vec, ICCV 2019 (arXiv 1902.03545), §5.
    """
    check_word("transfer_errors", "method", method, HeadMethod)
    given = [task if isinstance(task, tuple) else _train_and_test(task, share, seed) for task in tasks]
    if not experts or not given:
        raise ValueError(
            f"transfer_errors: expected at least one expert and one task, got {len(experts)} and {len(given)}."
        )
    pairs = {train.name: (_drawn(train, num_samples, seed), _drawn(test, num_test, seed)) for train, test in given}
    if len(pairs) < len(given):
        raise ValueError("transfer_errors: expected tasks of different names, got one twice; rename it.")
    for name, (train, _) in pairs.items():
        check_labels(read_labels(train), who=f"transfer_errors: {name}")
    recipe = None if fine_tuning is None else as_recipe(fine_tuning)
    if recipe is None:
        l2 = HeadSettings(method, CLASSIFIER_L2[method] if l2 is None else l2).l2
        how: dict[str, Any] = {"method": method, "l2": l2, "fine_tuning": None, "seed": seed}
    else:
        how = {"method": None, "l2": None, "fine_tuning": asdict(recipe), "seed": seed}
    networks = {name: _network(expert) for name, expert in experts.items()}
    images = {name: [_images(part) for part in pair] for name, pair in pairs.items()}
    table = _Table(Path(file).expanduser(), how, networks, images)
    calls: list[tuple[Any, ...]] = []
    for name, (train, test) in pairs.items():
        todo = [expert for expert in experts if (expert, name) not in table.errors]
        # Images are read once for all experts, but fine-tuning is long.
        shares = [todo] if recipe is None else [[one] for one in todo]
        calls += [("all", train, test, some) for some in shares if some]
    make = partial(_Meter, dict(experts), recipe, {"method": method, "l2": l2, "seed": seed}, batch_size, cache)
    if ray:
        _measure_on_cluster(ray, make, calls, table, options)
    else:
        meter = make(options)
        for _, train, test, some in calls:
            for expert, error in meter.each(train, test, some):
                table.put(train.name, {expert: error})
    return table.matrix().select(experts=list(experts), tasks=list(pairs))


def transfer_gain(errors: ErrorMatrix, reference: str | None = IMAGENET) -> Tensor:
    """Return the transfer gain ``D(a→b) = (ℓ_{a→b} − ℓ_b) / ℓ_b`` of every expert a on every task b.

    ``[E, T]`` float64; below 0: the expert helps. NaN where an error was not measured, or a task has no own expert;
    ±inf or NaN where ℓ_b = 0.

    Args:
        errors: The errors ℓ_{a→b}.
        reference: Expert whose errors are ℓ_b, without transfer; None: each task's own expert.

    Raises:
        ValueError: If there is no such expert.

    Source:
        Achille et al. 2019, §4 (transfer distance).
    """
    if reference is not None:
        base = errors.row(reference)
    else:
        base = torch.full_like(errors.errors[0], torch.nan)
        for t, task in enumerate(errors.tasks):
            base[t] = errors.row(task)[t] if task in errors.experts else torch.nan
    return (errors.errors - base) / base


class _Meter:
    """What measures errors, here or in a worker."""

    def __init__(
        self,
        experts: dict[str, AnyExpert],
        recipe: Recipe | None,
        how: dict[str, Any],
        batch_size: int,
        cache: str | os.PathLike[str] | None,
        options: RunOptions,
    ) -> None:
        self._experts, self._recipe, self._how, self._options = experts, recipe, how, options
        self._run: dict[str, Any] = {"batch_size": batch_size, **options}
        self._extractor = Extractor(experts, cache=cache, **self._run)

    def all(self, train: Task, test: Task, experts: Sequence[str]) -> dict[str, float]:
        """Return the errors of some experts on a task."""
        return dict(self.each(train, test, experts))

    def each(self, train: Task, test: Task, experts: Sequence[str]) -> Iterator[tuple[str, float]]:
        """Yield expert and error."""
        if self._recipe is None:
            fitted, tested = self._extractor.features(train, experts), self._extractor.features(test, experts)
            for expert in experts:
                yield expert, classifier_error(fitted[expert], tested[expert], **self._how)
            return
        for expert in experts:
            fit, rest = hold_out(train, 0.8, seed=self._how["seed"])
            probe = as_probe(self._experts[expert])
            tuned = fine_tune(probe, fit, rest, self._recipe, seed=self._how["seed"], **self._options).probe
            result = Extractor({expert: tuned}, **self._run).features(test)[expert]
            yield expert, float((result.probabilities.argmax(1) != result.labels).double().mean())


def _measure_on_cluster(
    address: str | bool,
    make: Callable[[RunOptions], _Meter],
    calls: list[tuple[Any, ...]],
    table: _Table,
    options: RunOptions,
) -> None:
    gpus = options.get("device") is None or str(options["device"]).startswith("cuda")
    workers = options.get("num_workers") or 0
    there = partial(make, options | {"progress": False, "num_workers": workers})
    calls.sort(key=lambda call: len(call[1]) * len(call[3]), reverse=True)
    with Pool(address, there, gpus=gpus, cpus=1 + workers) as pool:
        for answer in pool.run(calls):
            table.put(calls[answer.number][1].name, answer.result())


class _Table:
    """The errors on the disk, and how they were measured."""

    def __init__(
        self, file: Path, how: dict[str, Any], experts: dict[str, dict[str, Any]], tasks: dict[str, list[str]]
    ) -> None:
        """Read what was measured, check that the new errors go with it, and write down how these are measured."""
        self.file = file
        self.errors: dict[tuple[str, str], float] = {}
        # As JSON gives it back: lists for tuples.
        record: dict[str, Any] = json.loads(json.dumps({"how": how, "experts": experts, "tasks": tasks}))
        beside = file.with_name(file.name + ".json")
        if file.exists():
            old = ErrorMatrix.read_csv(file)
            before = json.loads(beside.read_text()) if beside.exists() else {"how": None, "experts": {}, "tasks": {}}
            differ = ["the way of measuring"] if before["how"] != record["how"] else []
            for what, names in (("experts", old.experts), ("tasks", old.tasks)):
                known, wanted = before[what], record[what]
                differ += [name for name in names if name not in known]
                differ += [_differing(name, known[name], value) for name, value in wanted.items() if name in known]
                record[what] = {**known, **wanted}
            if differ := list(filter(None, differ)):
                raise ValueError(
                    f"transfer_errors: expected the errors in {file} to be of the same measurement, got another for "
                    f"{', '.join(differ[:5])}; remove the file, or name another."
                )
            for expert, row in zip(old.experts, old.errors.tolist(), strict=True):
                measured = zip(old.tasks, row, strict=True)
                self.errors |= {(expert, task): error for task, error in measured if not math.isnan(error)}
        self.experts, self.tasks = tuple(record["experts"]), tuple(record["tasks"])
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(beside) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")

    def put(self, task: str, errors: Mapping[str, float]) -> None:
        """Keep errors by expert, and write the file."""
        self.errors |= {(expert, task): error for expert, error in errors.items()}
        self.matrix().write_csv(self.file)

    def matrix(self) -> ErrorMatrix:
        """Return all errors of the file."""
        rows = [[self.errors.get((expert, task), math.nan) for task in self.tasks] for expert in self.experts]
        return ErrorMatrix(torch.tensor(rows, dtype=torch.float64), self.experts, self.tasks)


def _network(expert: AnyExpert) -> dict[str, Any]:
    """What decides an expert's features: its weights, and how it sees an image."""
    preprocess = expert.card.preprocess if isinstance(expert, Expert) else _dictionary(expert.preprocess)
    return {"weights": expert.fingerprint, "preprocessing": preprocess}


def _dictionary(preprocess: Preprocess | None) -> dict[str, Any] | None:
    return None if preprocess is None else preprocess.to_dict()


def _images(task: Task) -> str:
    """The digest of a task's images; of its labels, in order, where the images are not files."""
    labels = read_labels(task)
    return task.digest() or "labels " + hashlib.sha256(labels.numpy().tobytes()).hexdigest()


def _differing(name: str, before: Any, now: Any) -> str:
    """Say in what a recorded network or task differs; nothing where it does not."""
    if before == now:
        return ""
    if not isinstance(now, dict):
        return name
    before = before if isinstance(before, dict) else {"weights": before}  # version 0.2 recorded nothing else
    return f"{name} (other {' and '.join(key for key in now if before.get(key, '') != now[key])})"


def _train_and_test(task: TaskSource, share: float, seed: int) -> tuple[Task, Task]:
    source = as_task(task)
    train, test = hold_out(source, share, seed=seed)
    return as_task(train, name=source.name), as_task(test, name=source.name)


def _drawn(task: Task, num_samples: int | None, seed: int) -> Task:
    """Return a draw in proportion to the classes, with at least one image of each."""
    labels = read_labels(task)
    number = None if num_samples is None else max(num_samples, len(labels.unique()))
    return subset(task, draw(labels, number, seed))
