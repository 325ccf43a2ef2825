"""`task2vec select …`: rank experts for a task, and score the selectors."""

from __future__ import annotations

import json as _json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from .._util.terminal import console, print_table, printable
from ..words import Rows
from .options import Device, NumSamples, NumWorkers, Seed, SkipUnreadable, on_error

if TYPE_CHECKING:
    from ..embed import Work
    from ..experts import Expert, RunOptions
    from ..selection import Choice, ExpertFacts, Interval, Selector, Table, TaskFacts

Learned = Literal["asym_fitted", "model2vec"]
FromOutputs = Literal["leep", "nce", "logme", "h_score", "knn", "linear_probe"]
SelectorName = Literal["asym", "sym", "asym_scaled", "library_correlation", Learned, FromOutputs, "largest_task"]


class _TaskByDefault(TyperGroup):
    """`task2vec select TASK` is `task2vec select rank TASK`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the options of rank, too: they are this command's."""
        super().format_help(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_heading("Options with TASK")
        with formatter.indentation():
            formatter.write_dl(filter(None, (option.get_help_record(ctx) for option in self.commands["rank"].params)))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["rank", *args])


select = typer.Typer(
    cls=_TaskByDefault,
    help="Choose an expert for a task.\n\n"
    "task2vec select TASK --experts DIR ranks the experts without fine-tuning any of them on the task.",
    no_args_is_help=True,
    context_settings={"ignore_unknown_options": True},  # options before TASK belong to rank
    epilog="select TASK is short for select rank TASK. If the task's folder is called rank or evaluate, write ./rank "
    "or ./evaluate.",
)

_Library = Annotated[
    Path | None,
    Option(metavar="DIR", help="Embeddings of the tasks in CSV: a library, or a folder of embeddings (.safetensors)."),
]
_Json = Annotated[bool, Option("--json", help="Print JSON.")]


@select.command()
def rank(
    task: Annotated[
        str,
        Argument(
            metavar="TASK", help="A folder of class folders (or cub:DIR, …), or the task's embedding (.safetensors)."
        ),
    ],
    experts: Annotated[Path, Option(metavar="DIR", help="Folder of experts (task2vec expert).")],
    by: Annotated[SelectorName, Option(help="The selector; docs/selection.md describes all.")] = "asym",
    errors: Annotated[
        Path | None,
        Option(metavar="CSV", help="Errors of the experts on other tasks (task2vec expert transfer), to learn from."),
    ] = None,
    library: _Library = None,
    weights: Annotated[
        str | None, Option(help="Checkpoint of the probe with which the experts' tasks were embedded.")
    ] = None,
    num_samples: NumSamples = None,
    device: Device = None,
    num_workers: NumWorkers = 0,
    seed: Seed = 0,
    skip_unreadable: SkipUnreadable = False,
    json: _Json = False,
) -> None:
    """Rank the experts for a task, best first.

    asym, the default, compares the task's embedding with those of the experts' own tasks: no expert is run, so the cost
    does not depend on their number. leep, nce, logme, h_score, knn and linear_probe run every expert on the task's
    images. asym_fitted and model2vec learn from --errors.
    """
    from ..embed import Work
    from ..experts import experts_in
    from ..selection import SELECTORS, ExpertFacts, TaskFacts, choose

    found = experts_in(experts)
    if not found:
        raise ValueError(f"select: expected experts in {experts}, found none; task2vec expert train makes them.")
    if (by in get_args(Learned)) != (errors is not None):
        needs = "--errors" if by in get_args(Learned) else "no --errors"
        raise ValueError(f"select: expected {needs} with --by {by}; {', '.join(get_args(Learned))} learn from errors.")
    facts = [ExpertFacts(one.name, TaskFacts(one.name, one.embedding, one.card.num_images)) for one in found]
    selector = SELECTORS[by]
    if errors is not None:
        selector = _fitted(selector, errors, facts, library)
    work = Work(device=device, num_workers=num_workers, on_error=on_error(skip_unreadable))
    chosen = choose(_facts_of(task, by, found, weights, num_samples, seed, work), facts, selector)
    if json:
        ranked = [{**one._asdict(), "score": one.score if math.isfinite(one.score) else None} for one in chosen.ranked]
        content = {"task": chosen.task, "selector": chosen.selector, "why": chosen.why, "experts": ranked}
        print(_json.dumps(content, indent=1))
    else:
        _print_choice(chosen, found)


@select.command()
def evaluate(
    errors: Annotated[
        Path,
        Argument(metavar="CSV", help="Errors of experts on tasks: expert,TASK,…, a row for each expert; or task,…"),
    ],
    library: _Library = None,
    experts: Annotated[
        Path | None,
        Option(metavar="DIR", help="Folder of the experts; their cards have the numbers of images for largest_task."),
    ] = None,
    sizes: Annotated[
        Path | None,
        Option(metavar="CSV", help="Numbers of images for largest_task: task,images, a row for each expert's task."),
    ] = None,
    rows: Annotated[
        Rows | None, Option(help="What the rows of CSV are; default: what its header's first cell says, else experts.")
    ] = None,
    by: Annotated[list[str] | None, Option(help="Score only this selector; may be repeated.")] = None,
    folds: Annotated[
        int | None, Option(min=2, help="Folds for selectors that learn; default: one task per fold, at most 100 folds.")
    ] = None,
    draws: Annotated[int, Option(min=1, help="Bootstrap samples of the tasks.")] = 5000,
    seed: Seed = 0,
    json: _Json = False,
) -> None:
    """Score the selectors on measured errors.

    The errors come from task2vec expert transfer, or are your own. An expert has the name of the task it was trained
    on, and cannot be chosen for that task. The row imagenet is the probe without fine-tuning. Selectors that run the
    experts need images and are not scored here, but in benchmarks/model_selection.py.
    """
    from ..experts.errors import read_errors, read_sizes
    from ..selection import SELECTORS, TaskFacts
    from ..selection import evaluate as score

    matrix, decided = read_errors(errors, rows)
    known = {} if library is None else _embedded(library)
    lacking = [name for name in matrix.tasks if library is not None and name not in known]
    if len(lacking) == len(matrix.tasks):
        raise ValueError(f"select evaluate: expected embeddings of {errors}'s tasks in {library}, found none of them.")
    wanted = by or [name for name in SELECTORS if name not in get_args(FromOutputs)]
    if unknown := [name for name in wanted if name not in SELECTORS]:
        raise ValueError(f"select evaluate: expected --by to be one of {', '.join(SELECTORS)}; got {unknown[0]!r}.")
    matrix = matrix.select(tasks=[name for name in matrix.tasks if name not in lacking])
    counts = {} if sizes is None else read_sizes(sizes)
    for name, images in counts.items():
        known[name] = replace(known.get(name, TaskFacts(name)), num_images=images)
    selectors = [SELECTORS[name] for name in wanted]
    facts = None if experts is None else _carded(experts, known, counts)
    table = score(matrix, selectors, known, facts, folds=folds, draws=draws, seed=seed, progress=True)
    table = replace(table, left_out={**dict.fromkeys(lacking, "no embedding"), **table.left_out})
    if json:
        print(_json.dumps({**table.to_json(), "decided": decided}, indent=1))
    else:
        _print_evaluation(table)
        print(printable(f"{errors}: {'; '.join(decided)}"))


def _print_choice(chosen: Choice, experts: list[Expert]) -> None:
    cards = {one.name: one.card for one in experts}
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
    by = chosen.selector
    columns = ("", "expert", f"{by} score", *(("±", "place, 95 %") if sure else ()), "architecture", "images")
    print_table(console(), columns, rows)
    print(printable(chosen.why))
    if without := sum(math.isnan(one.score) for one in chosen.ranked):
        print(f"{without} of {len(rows)} experts have no score: {by} knows too little of them.")


def _print_evaluation(table: Table) -> None:
    rows = [
        (
            row.selector,
            *(_with_interval(row.means[measure], 100, "+.1f") for measure in ("increase", "points")),
            *(_with_interval(row.means[measure], 100, ".0f") for measure in ("top1", "top3")),
            *(_with_interval(row.means[measure], 1, ".2f") for measure in ("spearman", "tau")),
            f"{row.passes:g}",
        )
        for row in table.rows
    ]
    columns = ("selector", "over the best, %", "points", "top 1, %", "top 3, %", "Spearman", "weighted τ", "passes")
    print_table(console(), columns, rows)
    print(
        f"{len(table.tasks)} tasks, {len(table.experts)} experts; mean error of the best expert that is not a task's "
        f"own: {float(table.optimum.mean()):.1%}. In brackets: {table.confidence:.0%} intervals over tasks; passes: "
        "forward passes over a task's images."
    )
    for what, names in (("not scored", table.left_out), ("no row", table.unable)):
        for name, reason in names.items():
            print(printable(f"{what}: {name} ({reason.removeprefix(f'{name}: ').rstrip('.')})"))


def _with_interval(interval: Interval, unit: float, form: str) -> str:
    if math.isnan(interval.value):
        return "–"
    value, low, high = (format(unit * number, form) for number in interval)
    return f"{value} [{low.lstrip('+')}, {high.lstrip('+')}]"


def _facts_of(
    spec: str, by: str, experts: list[Expert], weights: str | None, num_samples: int | None, seed: int, work: Work
) -> TaskFacts:
    """What the selector needs to know of the task: its embedding, or every expert's outputs on its images."""
    from ..data import tasks_from
    from ..embed import embed_like
    from ..embedding import Embedding
    from ..experts import Extractor
    from ..selection import TaskFacts

    if spec.endswith(".safetensors"):
        embedding = Embedding.load(spec)
        return TaskFacts(embedding.name, embedding, embedding.num_samples)
    tasks = tasks_from(spec)
    if len(tasks.names) != 1:
        raise ValueError(f"select: expected one task, got {len(tasks.names)} from {spec}; name one.")
    (task,) = tasks
    if by in get_args(FromOutputs):
        how: RunOptions = {"device": work.device, "num_workers": work.num_workers or 0, "on_error": work.on_error}
        extractor = Extractor({one.name: one for one in experts}, **how)
        outputs = extractor(task, num_samples=num_samples, seed=seed)
        return TaskFacts(task.name, outputs=outputs.__getitem__)
    if by == "largest_task":
        return TaskFacts(task.name)
    like = next((one.embedding for one in experts if one.embedding is not None), None)
    if like is None:
        raise ValueError(
            f"select: expected an expert with the embedding of its task for --by {by}, got none; task2vec expert train "
            "keeps one, and --by logme needs none."
        )
    settings = replace(like.settings, num_samples=num_samples, seed=seed)
    return TaskFacts(task.name, embed_like(like.probe, settings, task, weights=weights, work=work), len(task))


def _fitted(selector: Selector, errors: Path, experts: list[ExpertFacts], library: Path | None) -> Selector:
    """Return the selector, fitted to the errors of these experts on the tasks that have embeddings."""
    from ..selection import ErrorMatrix

    matrix = ErrorMatrix.read_csv(errors).without_own()
    known = {expert.name: expert for expert in experts}
    tasks = {expert.name: expert.task for expert in experts if expert.task and expert.task.embedding}
    tasks |= {} if library is None else _embedded(library)
    rows = [name for name in matrix.experts if name in known]
    columns = [name for name in matrix.tasks if name in tasks]
    if not rows or not columns:
        raise ValueError(
            f"select: expected errors of these experts on tasks with embeddings in {errors}, got {len(rows)} of the "
            f"experts and {len(columns)} of the tasks; --library names a folder of embeddings."
        )
    return selector.fit(matrix.select(experts=rows, tasks=columns), tasks, known)


def _carded(folder: Path, known: dict[str, TaskFacts], counts: dict[str, int]) -> dict[str, ExpertFacts]:
    """What the experts' cards say of their tasks, unless the images were counted; the rest is from the library."""
    from ..experts import experts_in
    from ..selection import ExpertFacts, TaskFacts

    facts = {}
    for one in experts_in(folder):
        task = known.get(one.name, TaskFacts(one.name))
        embedding, images = (
            task.embedding or one.embedding,
            counts.get(one.name) or one.card.num_images or task.num_images,
        )
        facts[one.name] = ExpertFacts(one.name, replace(task, embedding=embedding, num_images=images))
    return facts


def _embedded(folder: Path) -> dict[str, TaskFacts]:
    """What a library, or a folder of embeddings, knows of its tasks."""
    from ..library import load_embeddings
    from ..selection import TaskFacts

    files = load_embeddings(folder)
    found = {one.name: one for one in files}
    if files.library is not None:
        images = {entry.name: entry.images for entry in files.library.entries()}
    else:  # an embedding of drawn images does not tell how many the task has
        images = {name: one.num_samples for name, one in found.items() if one.settings.num_samples is None}
    return {name: TaskFacts(name, one, images.get(name)) for name, one in found.items()}
