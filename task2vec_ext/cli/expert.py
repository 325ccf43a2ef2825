"""`task2vec expert …`: train, register, list and test fine-tuned networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from .._util.atomic import check_writable
from .._util.terminal import console, print_table
from ..words import HeadMethod, RecipeName
from .options import (
    Device,
    ImageSize,
    NumSamples,
    NumWorkers,
    ProbeName,
    Ray,
    Seed,
    SkipUnreadable,
    Specs,
    Weights,
    kept,
    on_error,
)

if TYPE_CHECKING:
    from ..experts.expert import AnyExpert

expert = typer.Typer(help="Fine-tune networks and measure their errors.", no_args_is_help=True)

_Output = Annotated[Path, Option("--output", "-o", metavar="DIR", help="Folder of experts.")]


@expert.command()
def train(
    specs: Specs,
    output: _Output,
    probe: ProbeName = "resnet34",
    weights: Weights = None,
    image_size: ImageSize = None,
    recipe: Annotated[
        RecipeName, Option(help="paper: 60 epochs; quick: 5 epochs, for a few hundred images.")
    ] = "paper",
    num_samples: NumSamples = None,
    embed: Annotated[
        bool, Option(help="Also save the embedding of the task, which selectors need, with the expert.")
    ] = True,
    device: Device = None,
    num_workers: NumWorkers = 0,
    seed: Seed = 0,
    skip_unreadable: SkipUnreadable = False,
) -> None:
    """Fine-tune the probe on every task.

    If interrupted, run it again: it resumes after the last whole epoch.
    """
    from ..data import tasks_from
    from ..embed import fisher_embed
    from ..experts import train_expert
    from ..probe import load_probe

    net, tasks = load_probe(probe, weights=weights, image_size=image_size), tasks_from(*specs)
    check_writable("expert train", output)
    work: dict[str, Any] = {"device": device, "num_workers": num_workers, "seed": seed, "num_samples": num_samples}
    work |= {"on_error": on_error(skip_unreadable), "progress": True}
    with kept(f"finished experts and whole epochs are kept in {output}: the same command continues"):
        for task in tasks:
            trained = train_expert(task, output, net, recipe=recipe, **work)
            if embed and not trained.embedding_file.exists():
                fisher_embed(task, net, **work).save(trained.embedding_file)
            metrics = trained.card.metrics
            found = f"held-out error {metrics['error']:.1%} after epoch {metrics['epoch']:.0f}"
            print(f"{trained.name}: {found}", flush=True)


@expert.command()
def register(
    name: Annotated[str, Argument(metavar="NAME", help="Name of the expert: the name of the task it was trained on.")],
    weights: Annotated[str, Argument(metavar="CHECKPOINT", help="Weights of the expert (.safetensors, .pth).")],
    output: _Output,
    probe: ProbeName = "resnet34",
    image_size: ImageSize = None,
    embedding: Annotated[
        Path | None, Option(metavar="FILE", help="Embedding of the task it was trained on (.safetensors).")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an expert of this name.")] = False,
) -> None:
    """Add a checkpoint as an expert."""
    from ..embedding import Embedding
    from ..experts import save_expert
    from ..probe import load_probe

    known = None if embedding is None else Embedding.load(embedding)
    net = load_probe(probe, weights=weights, image_size=image_size)
    made = save_expert(net, output, name, embedding=known, overwrite=overwrite)
    print(f"{made.name}: {made.card.num_classes} classes, in {made.folder}")
    if made.card.random_head:
        print(f"{weights} has no weights of the head {made.card.head!r}: leep and nce give this expert no score")


@expert.command()
def ls(folder: Annotated[Path, Argument(metavar="DIR", help="Folder of experts.")]) -> None:
    """List the experts."""
    from ..experts import experts_in

    rows = [
        (
            found.name,
            found.card.architecture,
            str(found.card.num_classes),
            "" if found.card.num_images is None else f"{found.card.num_images:,}",
            f"{found.card.metrics['error']:.1%}" if "error" in found.card.metrics else "",
            "yes" if found.embedding_file.exists() else "no",
        )
        for found in experts_in(folder)
    ]
    print_table(console(), ("expert", "architecture", "classes", "images", "held-out error", "embedding"), rows)


@expert.command()
def transfer(
    specs: Specs,
    experts: Annotated[Path, Option(metavar="DIR", help="Folder of experts.")],
    output: Annotated[Path, Option("--output", "-o", metavar="CSV", help="File for the error matrix.")],
    probe: Annotated[
        str | None, Option(help="Also measure this network without fine-tuning, as the row imagenet.")
    ] = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    num_samples: Annotated[
        int | None, Option(min=1, help="At most this many training images per task; default: half of all.")
    ] = None,
    num_test: Annotated[
        int | None, Option(min=1, help="At most this many test images per task; default: the other half.")
    ] = None,
    method: Annotated[HeadMethod, Option(help="How the linear classifier on frozen features is fitted.")] = "lbfgs",
    fine_tuning: Annotated[
        RecipeName | None, Option(help="Instead fine-tune every expert on every task, with this recipe.")
    ] = None,
    cache: Annotated[Path | None, Option(metavar="DIR", help="Folder in which to cache features.")] = None,
    ray: Ray = None,
    device: Device = None,
    num_workers: NumWorkers = 0,
    seed: Seed = 0,
    skip_unreadable: SkipUnreadable = False,
) -> None:
    """Measure every expert's error on every task.

    task2vec select evaluate reads the result. If interrupted, run it again, also with more tasks or experts: no error
    is measured twice.
    """
    from ..data import tasks_from
    from ..experts import IMAGENET, experts_in, transfer_errors
    from ..probe import load_probe

    rows: dict[str, AnyExpert] = {found.name: found for found in experts_in(experts)}
    if probe is not None:
        rows[IMAGENET] = load_probe(probe, weights=weights, image_size=image_size)
    how: dict[str, Any] = {"num_samples": num_samples, "num_test": num_test, "method": method, "seed": seed}
    how |= {"fine_tuning": fine_tuning, "cache": cache, "device": device, "num_workers": num_workers}
    how |= {"on_error": on_error(skip_unreadable), "progress": True, "ray": ray}
    with kept(f"what is measured is kept in {output}: the same command continues"):
        matrix = transfer_errors(rows, tasks_from(*specs), output, **how)
    best = matrix.errors.min(0)
    table = [
        (task, f"{error:.1%}", matrix.experts[index])
        for task, error, index in zip(matrix.tasks, best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    print_table(console(), ("task", "least error", "expert"), table)
    print(f"  matrix: {output}")
