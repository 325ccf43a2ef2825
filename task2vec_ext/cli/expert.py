"""`task2vec expert …`: networks that may be chosen for a new task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .._util.terminal import console, print_table
from ..experts.recipe import RecipeName
from ..fisher.head import HeadMethod
from .options import Device, ImageSize, NumWorkers, ProbeName, Seed, Specs, Weights

expert = typer.Typer(
    help="Fine-tune networks, keep them, and measure what they are worth on tasks.", no_args_is_help=True
)


@expert.command()
def train(
    specs: Specs,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the experts, a folder each.")],
    probe: ProbeName = "resnet34",
    weights: Weights = None,
    image_size: ImageSize = None,
    recipe: Annotated[RecipeName, typer.Option(help="paper: 60 epochs; quick: for a few hundred images.")] = "paper",
    num_samples: Annotated[int | None, typer.Option(min=1, help="At most so many images a task; default: all.")] = None,
    embed: Annotated[bool, typer.Option(help="Keep the task's embedding beside the expert: selectors need it.")] = True,
    device: Device = None,
    num_workers: NumWorkers = 0,
    seed: Seed = 0,
) -> None:
    """Fine-tune the probe on every task.

    Can be killed at any time, and given again: it goes on after the last whole epoch.
    """
    from ..data import tasks_from
    from ..embed.fisher_embed import fisher_embed
    from ..experts.expert import train_expert
    from ..probe.probe import load_probe

    net = load_probe(probe, weights=weights, image_size=image_size)
    work: dict[str, Any] = {"device": device, "num_workers": num_workers, "seed": seed, "num_samples": num_samples}
    for task in tasks_from(*specs):
        trained = train_expert(task, output, net, recipe=recipe, **work)
        if embed and not trained.embedding_file.exists():
            fisher_embed(task, net, **work).save(trained.embedding_file)
        metrics = trained.card.metrics
        print(f"{trained.name}: held-out error {metrics['error']:.1%} after epoch {metrics['epoch']:.0f}", flush=True)


@expert.command()
def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it: the task it was trained on.")],
    weights: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Its weights (.safetensors, .pth).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the experts.")],
    probe: ProbeName = "resnet34",
    image_size: ImageSize = None,
    embedding: Annotated[
        Path | None, typer.Option(help="The embedding of the task it was trained on (.safetensors).")
    ] = None,
) -> None:
    """Make any checkpoint an expert."""
    from ..embedding import Embedding
    from ..experts.expert import save_expert
    from ..probe.probe import load_probe

    known = None if embedding is None else Embedding.load(embedding)
    made = save_expert(load_probe(probe, weights=weights, image_size=image_size), output, name)
    if known is not None:
        known.save(made.embedding_file)
    print(f"{made.name}: {made.card.num_classes} classes, in {made.folder}")


@expert.command()
def ls(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of experts.")]) -> None:
    """List the experts."""
    from ..experts.expert import experts_in

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
    experts: Annotated[Path, typer.Option("--experts", metavar="DIR", help="Folder of experts.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="CSV", help="The matrix of errors.")],
    probe: Annotated[
        str | None, typer.Option(help="Also measure this network without fine-tuning: the row imagenet.")
    ] = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Images of a task to learn from, at most; default: half of all.")
    ] = None,
    num_test: Annotated[
        int | None, typer.Option(min=1, help="Images to test on, at most; default: the other half.")
    ] = None,
    method: Annotated[HeadMethod, typer.Option(help="How the classifier on frozen features is fitted.")] = "lbfgs",
    fine_tuning: Annotated[
        RecipeName | None, typer.Option(help="Fine-tune every expert to every task instead, by this recipe.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps features.")] = None,
    device: Device = None,
    num_workers: NumWorkers = 0,
    seed: Seed = 0,
) -> None:
    """Measure the error of every expert on every task: `task2vec select evaluate` scores selectors against it.

    Can be killed at any time, and given again, with more tasks or experts, too: no error is measured twice.
    """
    from ..data import tasks_from
    from ..experts.errors import IMAGENET
    from ..experts.expert import AnyExpert, experts_in
    from ..experts.transfer import transfer_errors
    from ..probe.probe import load_probe

    rows: dict[str, AnyExpert] = {found.name: found for found in experts_in(experts)}
    if probe is not None:
        rows[IMAGENET] = load_probe(probe, weights=weights, image_size=image_size)
    matrix = transfer_errors(
        rows,
        tasks_from(*specs),
        output,
        num_samples=num_samples,
        num_test=num_test,
        method=method,
        fine_tuning=fine_tuning,
        seed=seed,
        device=device,
        num_workers=num_workers,
        cache=cache,
    )
    best = matrix.errors.min(0)
    table = [
        (task, f"{float(error):.1%}", matrix.experts[int(index)])
        for task, error, index in zip(matrix.tasks, best.values, best.indices, strict=True)
    ]
    print_table(console(), ("task", "least error", "expert"), table)
    print(f"  matrix: {output}")
