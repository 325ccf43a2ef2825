"""`task2vec select …`: which expert for a task, and how well the ways to choose do."""

from __future__ import annotations

import json as _json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from .._util.terminal import console, print_table, printable

if TYPE_CHECKING:
    from ..experts.expert import Expert
    from ..selection import ErrorMatrix, ExpertFacts, TaskFacts
    from ..selection.evaluate import Interval, Table

SelectorName = Literal[
    "asym",
    "sym",
    "asym_scaled",
    "asym_fitted",
    "model2vec",
    "largest_task",
    "leep",
    "nce",
    "logme",
    "h_score",
    "knn",
    "linear_probe",
]
_LEARNED = ("asym_fitted", "model2vec")
_OUTPUTS = ("leep", "nce", "logme", "h_score", "knn", "linear_probe")


class _TaskByDefault(TyperGroup):
    """`task2vec select TASK` is `task2vec select rank TASK`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["rank", *args])


select = typer.Typer(
    cls=_TaskByDefault,
    help="Choose the expert for a task without trying them all: task2vec select TASK --experts DIR.",
    no_args_is_help=True,
    context_settings={"ignore_unknown_options": True},  # options before TASK belong to rank
    epilog="select TASK is short for select rank TASK; a task's folder called rank or evaluate is ./rank, ./evaluate.",
)

_Library = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Embeddings of the matrix's tasks: a library, or a folder of .safetensors."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@select.command()
def rank(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="A folder of class folders (or cub:DIR …), or its embedding (.safetensors)."
        ),
    ],
    experts: Annotated[Path, typer.Option(metavar="DIR", help="Folder of experts (task2vec expert).")],
    by: Annotated[SelectorName, typer.Option(help="How to choose; docs/model_selection.md compares them.")] = "asym",
    errors: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Errors of the experts on other tasks (task2vec expert transfer), to learn from."
        ),
    ] = None,
    library: _Library = None,
    weights: Annotated[
        str | None, typer.Option(help="Checkpoint of the probe that the experts' tasks were embedded with.")
    ] = None,
    num_samples: Annotated[int | None, typer.Option(min=1, help="At most so many images; default: all.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: CUDA where there is one.")] = None,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
    json: _Json = False,
) -> None:
    """Rank the experts for a task, best first, and say why (the default).

    asym, the default, compares the task's embedding with those of the experts' own tasks: the experts are not run, and
    their number costs nothing. leep, nce, logme, h_score, knn and linear_probe run every expert on the task's images.
    asym_fitted and model2vec learn from --errors.
    """
    from ..experts.expert import experts_in
    from ..selection import SELECTORS, ExpertFacts, TaskFacts
    from ..selection.choose import choose

    found = experts_in(experts)
    if not found:
        raise ValueError(f"select: expected experts in {experts}, found none; task2vec expert train makes them.")
    if (by in _LEARNED) != (errors is not None):
        needs = "--errors" if by in _LEARNED else "no --errors"
        raise ValueError(f"select: expected {needs} with --by {by}; {', '.join(_LEARNED)} learn from errors.")
    facts = [
        ExpertFacts(one.name, TaskFacts(one.name, None if by in _OUTPUTS else one.embedding, one.card.num_images))
        for one in found
    ]
    work: dict[str, Any] = {"num_samples": num_samples, "device": device, "num_workers": num_workers, "seed": seed}
    selector = SELECTORS[by]
    if errors is not None:
        selector = selector.fit(*_to_learn_from(errors, facts, library))
    chosen = choose(_facts_of(task, by, found, weights, work), facts, selector)
    if json:
        ranked = [{**one._asdict(), "score": one.score if math.isfinite(one.score) else None} for one in chosen.ranked]
        content = {"task": chosen.task, "selector": chosen.selector, "why": chosen.why, "experts": ranked}
        print(_json.dumps(content, indent=1))
        return
    cards = {one.name: one.card for one in found}
    sure = chosen.ranked[0].standard_error is not None
    rows = [
        (
            str(place),
            one.name,
            "–" if math.isnan(one.score) else f"{one.score:.4f}",
            *((f"{one.standard_error:.4f}", f"{one.best}–{one.worst}") if one.best else ("", "") if sure else ()),
            cards[one.name].architecture,
            "" if cards[one.name].num_images is None else f"{cards[one.name].num_images:,}",
        )
        for place, one in enumerate(chosen.ranked, 1)
    ]
    columns = ("", "expert", f"{by} score", *(("±", "place, 95 %") if sure else ()), "architecture", "images")
    print_table(console(), columns, rows)
    print(printable(chosen.why))
    if without := sum(math.isnan(one.score) for one in chosen.ranked):
        print(f"{without} of {len(rows)} experts have no score: nothing tells {by} what they were trained on.")


@select.command()
def evaluate(
    errors: Annotated[
        Path, typer.Argument(metavar="CSV", help="Errors of experts on tasks: expert,TASK,…, a row for each expert.")
    ],
    library: _Library = None,
    experts: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the experts: on how many images each was trained, for largest_task."
        ),
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="Only this one; can be given again.")] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Parts of the tasks that are left out in turn of what is learned; default: one task."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Bootstrap samples of the tasks.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    json: _Json = False,
) -> None:
    """Score the ways to choose against an error matrix (task2vec expert transfer, or anyone's).

    Experts are called after their tasks; a task's own expert cannot be chosen for it. The row imagenet is the probe
    without fine-tuning. Selectors that run the experts need images: benchmarks/model_selection.py has them.
    """
    from ..selection import SELECTORS, ErrorMatrix
    from ..selection.evaluate import evaluate as score

    matrix = ErrorMatrix.read_csv(errors)
    known = {} if library is None else _embedded(library)
    lacking = [name for name in matrix.tasks if library is not None and name not in known]
    if len(lacking) == len(matrix.tasks):
        raise ValueError(f"select evaluate: expected embeddings of {errors}'s tasks in {library}, found none of them.")
    wanted = by or [name for name in SELECTORS if name not in _OUTPUTS]
    for name in wanted:
        if name not in SELECTORS:
            raise ValueError(f"select evaluate: expected --by to be one of {', '.join(SELECTORS)}; got {name!r}.")
    table = score(
        matrix.select(tasks=[name for name in matrix.tasks if name not in lacking]),
        [SELECTORS[name] for name in wanted],
        known,
        None if experts is None else _carded(experts, known),
        folds=folds,
        draws=draws,
        seed=seed,
    )
    table = replace(table, left_out={**dict.fromkeys(lacking, "no embedding"), **table.left_out})
    if json:
        print(_json.dumps(table.to_json(), indent=1))
        return
    _print_evaluation(table)


def _print_evaluation(table: Table) -> None:
    rows = [
        (
            row.selector,
            _with_interval(row.means["increase"], 100, "+.1f"),
            _with_interval(row.means["points"], 100, "+.1f"),
            _with_interval(row.means["top1"], 100, ".0f"),
            _with_interval(row.means["top3"], 100, ".0f"),
            _with_interval(row.means["spearman"], 1, ".2f"),
            _with_interval(row.means["tau"], 1, ".2f"),
            f"{row.passes:g}",
        )
        for row in table.rows
    ]
    columns = ("selector", "over the best, %", "points", "top 1, %", "top 3, %", "Spearman", "weighted τ", "passes")
    print_table(console(), columns, rows)
    print(
        f"{len(table.tasks)} tasks, {len(table.experts)} experts; the best expert, a task's own excluded, has an error "
        f"of {float(table.optimum.mean()):.1%} on average. In brackets: {table.confidence:.0%} intervals over tasks; "
        "passes: forward passes over a task's images."
    )
    for what, names in (("not scored", table.left_out), ("no row", table.unable)):
        for name, reason in names.items():
            print(printable(f"{what}: {name} ({reason.removeprefix(f'{name}: ').rstrip('.')})"))


def _with_interval(interval: Interval, unit: float, form: str) -> str:
    if math.isnan(interval.value):
        return "–"
    value, low, high = (format(unit * number, form) for number in interval)
    return f"{value} [{low.lstrip('+')}, {high.lstrip('+')}]"


def _facts_of(spec: str, by: str, experts: list[Expert], weights: str | None, work: dict[str, Any]) -> TaskFacts:
    """What the selector needs to know of the task: its embedding, or every expert's outputs on its images."""
    from ..data import tasks_from
    from ..embedding import Embedding
    from ..selection import TaskFacts

    if spec.endswith(".safetensors"):
        embedding = Embedding.load(spec)
        return TaskFacts(embedding.name, embedding, embedding.num_samples)
    tasks = tasks_from(spec)
    if len(tasks.names) != 1:
        raise ValueError(f"select: expected one task, got {len(tasks.names)} from {spec}; name one.")
    (task,) = tasks
    if by in _OUTPUTS:
        from ..experts.features import Extractor

        extractor = Extractor(
            {one.name: one for one in experts}, device=work["device"], num_workers=work["num_workers"]
        )
        outputs = extractor(task, num_samples=work["num_samples"], seed=work["seed"])
        return TaskFacts(task.name, outputs=outputs.__getitem__)
    if by == "largest_task":
        return TaskFacts(task.name)
    like = next((one.embedding for one in experts if one.embedding is not None), None)
    if like is None:
        raise ValueError(
            f"select: expected an expert with the embedding of its task for --by {by}, got none; task2vec expert train "
            "keeps one, and --by logme needs none."
        )
    from dataclasses import replace

    from ..embed import Work, embed_like

    settings = replace(like.settings, num_samples=work["num_samples"], seed=work["seed"])
    place = Work(device=work["device"], num_workers=work["num_workers"])
    return TaskFacts(task.name, embed_like(like.probe, settings, task, weights=weights, work=place), len(task))


def _to_learn_from(
    errors: Path, experts: list[ExpertFacts], library: Path | None
) -> tuple[ErrorMatrix, dict[str, TaskFacts], dict[str, ExpertFacts]]:
    """The errors of these experts on the tasks that have embeddings, without those on their own tasks."""
    import torch

    from ..selection import ErrorMatrix

    matrix = ErrorMatrix.read_csv(errors)
    known = {expert.name: expert for expert in experts}
    tasks = {name: expert.task for name, expert in known.items() if expert.task and expert.task.embedding}
    tasks |= {} if library is None else _embedded(library)
    rows, columns = (
        [name for name in names if name in wanted] for names, wanted in ((matrix.experts, known), (matrix.tasks, tasks))
    )
    if not rows or not columns:
        raise ValueError(
            f"select: expected errors of these experts on tasks with embeddings in {errors}, got {len(rows)} of the "
            f"experts and {len(columns)} of the tasks; --library names a folder of embeddings."
        )
    part = matrix.select(experts=rows, tasks=columns)
    own = torch.tensor([[row == column for column in columns] for row in rows])
    return ErrorMatrix(part.errors.masked_fill(own, math.nan), part.experts, part.tasks), tasks, known


def _carded(folder: Path, known: dict[str, TaskFacts]) -> dict[str, ExpertFacts]:
    """What the experts' cards say, and where they have no embedding the library."""
    from ..experts.expert import experts_in
    from ..selection import ExpertFacts, TaskFacts

    facts = {}
    for one in experts_in(folder):
        beside = known.get(one.name, TaskFacts(one.name))
        images = one.card.num_images or beside.num_images
        facts[one.name] = ExpertFacts(
            one.name, replace(beside, embedding=beside.embedding or one.embedding, num_images=images)
        )
    return facts


def _embedded(folder: Path) -> dict[str, TaskFacts]:
    """What a library, or a folder of embeddings, knows of its tasks."""
    from ..embedding import Embedding
    from ..library import Library
    from ..selection import TaskFacts

    if (folder / "index.sqlite").exists():
        opened = Library(folder)
        done = [entry for entry in opened.entries() if entry.state == "done"]
        return {entry.name: TaskFacts(entry.name, opened.embedding(entry.name), entry.images) for entry in done}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"select: expected a library or embeddings in {folder}, found none.")
    found = [Embedding.load(file) for file in files]
    # A draw of the images does not tell how many there were.
    return {
        one.name: TaskFacts(one.name, one, one.num_samples if one.settings.num_samples is None else None)
        for one in found
    }
