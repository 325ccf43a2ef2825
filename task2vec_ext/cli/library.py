"""`task2vec library …` and `task2vec nearest`: many tasks in one folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .._util.terminal import console, print_table, printable
from ..distance.rules import SymDistanceName
from .options import (
    BatchSize,
    Beta,
    Device,
    Epochs,
    Estimator,
    ImageSize,
    Loss,
    NoiseOn,
    NumSamples,
    NumWorkers,
    ProbeName,
    Seed,
    SkipUnreadable,
    Specs,
    Weights,
)

library = typer.Typer(help="Embed many tasks into one folder, and look after it.", no_args_is_help=True)

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The library's folder.")]


@library.command()
def build(
    specs: Specs,
    output: Annotated[Path, typer.Option("--output", "-o", help="The library's folder.")],
    probe: ProbeName = "resnet34",
    weights: Weights = None,
    loss: Loss = "cross_entropy",
    estimator: Estimator = "signed",
    beta: Beta = None,
    noise: NoiseOn = None,
    epochs: Epochs = None,
    num_samples: NumSamples = None,
    image_size: ImageSize = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = 0,
    seed: Seed = 0,
    skip_unreadable: SkipUnreadable = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try those again that failed in an earlier build.")
    ] = False,
    shard_images: Annotated[
        bool, typer.Option("--shard-images", help="Processes share the images of one task, not the tasks.")
    ] = False,
) -> None:
    """Embed every task that is not in the library yet.

    Can be killed at any time, and given again: it goes on where it stopped. A task that fails is recorded and does not
    stop the others; then the exit code is 1. Several processes share the work: torchrun --nproc-per-node=4 -m
    task2vec_ext library build …
    """
    from ..data import tasks_from
    from ..embed.team import Team, launched_ranks
    from ..library import build_library

    tasks = tasks_from(*specs)
    with launched_ranks() as ranks:
        rank = Team(ranks).rank
        built = build_library(
            tasks,
            output,
            probe,
            weights=weights,
            image_size=image_size,
            retry_failed=retry_failed,
            progress=True,
            loss=loss,
            estimator=estimator,
            beta=beta,
            noise=noise,
            epochs=epochs,
            num_samples=num_samples,
            device=device,
            batch_size=batch_size,
            num_workers=num_workers,
            process_group=ranks,
            shard_images=shard_images,
            seed=seed,
            on_error="skip" if skip_unreadable else "raise",
        )
    if rank > 0:
        return  # the first has said it
    names = set(tasks.names)
    failed = sum(entry.state == "failed" for entry in built.entries() if entry.name in names)
    print(f"{len(tasks) - failed} of {len(tasks)} tasks are embedded in {output}")
    if failed:
        print(f"{failed} failed: task2vec library ls {output} --failed says why; build with --retry-failed")
        raise typer.Exit(1)


@library.command()
def status(folder: _Folder) -> None:
    """Print how many tasks are embedded, have failed and wait, and whether a build is going on."""
    from ..library import Library

    opened = Library(folder)
    for state, count in opened.status().items():
        print(f"{state:>8}: {count}")
    print("a process is building it" if opened.is_building else "no process is building it")
    for key, value in opened.settings.items():
        print(f"{key:>20}: {value}")


@library.command()
def ls(
    folder: _Folder, failed: Annotated[bool, typer.Option("--failed", help="Only those that failed, and why.")] = False
) -> None:
    """List the tasks."""
    from ..library import Library

    entries = Library(folder).entries()
    if failed:
        for entry in entries:
            if entry.state == "failed":
                print(printable(f"{entry.name}: {entry.error}"))
        return
    rows = [
        (
            entry.name,
            f"{entry.images:,}",
            entry.state,
            "" if entry.num_outputs is None else str(entry.num_outputs),
            "" if entry.score is None else f"{entry.score:.1%}",
            "" if entry.norm is None else f"{entry.norm:.4g}",
            "" if entry.seconds is None else f"{entry.seconds:.1f}",
        )
        for entry in entries
    ]
    print_table(console(), ("task", "images", "state", "classes", "head", "norm", "seconds"), rows)


@library.command()
def rm(folder: _Folder, names: Annotated[list[str], typer.Argument(metavar="TASK...", help="Their names.")]) -> None:
    """Remove tasks and their embeddings."""
    from ..library import Library

    Library(folder).remove(names)


@library.command()
def verify(folder: _Folder) -> None:
    """Check every file against its checksum and against the index; exit code 1 where something is wrong."""
    from ..library import Library

    opened = Library(folder)
    wrong = opened.verify()
    for line in wrong:
        print(printable(line))
    if wrong:
        raise typer.Exit(1)
    print(f"{opened.status()['done']} embeddings, all sound")


def nearest(
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", help="One of the library's, an embedding's file, or images: a folder or SPEC."),
    ],
    folder: Annotated[Path, typer.Option("--library", metavar="DIR", help="The library's folder.")],
    weights: Annotated[
        str | None, typer.Option(help="For images: the probe's checkpoint, where the library was built with one.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    distance: Annotated[
        SymDistanceName, typer.Option(help="sym is the paper's d_sym; sym_scaled: scaled to unit mean.")
    ] = "sym",
) -> None:
    """Find the tasks of a library that are nearest to one."""
    from ..data import tasks_from
    from ..embedding import Embedding
    from ..library import Library, embed_for

    opened = Library(folder)
    query: str | Embedding = task
    if task.endswith(".safetensors"):
        query = Embedding.load(task)
    elif opened.index.find(task) is None and (os.path.isdir(task) or ":" in task):
        tasks = tasks_from(task)
        if len(tasks) != 1:
            raise ValueError(f"nearest: expected one task, {task} has {len(tasks)}; add them to the library.")
        query = embed_for(opened, tasks[0], weights=weights)
    found = opened.nearest(query, k, distance=distance)
    rows = [(str(number), name, f"{distance:.4f}") for number, (name, distance) in enumerate(found, 1)]
    print_table(console(), ("", "task", "distance"), rows)
