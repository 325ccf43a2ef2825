"""``task2vec demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from .._util.atomic import check_writable
from .._util.terminal import console, print_table


def demo(
    output: Annotated[Path, Option("--output", "-o", help="Folder for the results.")] = Path("task2vec-demo"),
    seed: Annotated[int, Option(help="Seed of the images and the embeddings.")] = 0,
) -> None:
    """Embed and compare 25 small tasks, offline.

    They are handwriting, photographs, drawings and textures; it takes less than a minute. The images come with
    scikit-learn or are drawn, and the probe comes with this package.
    """
    from ..demo.run import run_demo
    from ..distance.nearest import nearest
    from ..plot import check_installed

    check_installed()
    check_writable("demo", output)
    with console().status("") as status:
        result = run_demo(output, seed=seed, report=status.update)
    tasks, found = result.tasks, nearest(result.distances)
    images = sum(map(len, tasks))
    print(f"Embedded {len(tasks)} tasks ({images:,} images) with the tiny probe in {result.seconds:.0f} s.\n")
    rows, own = [], 0
    for task, e, (other, distance) in zip(tasks, result.embeddings, found, strict=True):
        near = tasks[other]
        own += near.family == task.family
        name = near.name if near.family == task.family else f"{near.name} ({near.family})"
        measured = f"{e.head.best_score:.0%}", f"{e.norm:.3g}"
        rows.append((task.name, task.family, str(len(task.classes)), *measured, name, f"{distance:.2f}"))
    print_table(console(), ("task", "family", "classes", "accuracy", "norm", "nearest task", "distance"), rows)
    sizes = [sum(other.family == task.family for other in tasks) - 1 for task in tasks]
    chance = sum(sizes) / max(len(tasks) - 1, 1)
    print(
        f"The nearest task is of the same family for {own} of {len(tasks)} tasks (by chance: {chance:.0f}).\n"
        "The embeddings know nothing of the families: they are made from images, labels and the probe alone.\n\n"
        "accuracy  of the task's linear head on the probe's features, on images that it was not fitted to\n"
        "norm      of the embedding: the larger, the harder the task is for the probe\n"
        "distance  from 0, the same task, to 1\n"
    )
    print(f"Browse the tasks: {result.files['atlas'].resolve().as_uri()}")
    for what in ("plot", "distances", "table", "embeddings"):
        print(f"{what:>10}  {result.files[what]}")
    print("\nNext, your own images, one folder a task and in it one folder a class:")
    print("  task2vec embed TASK1 TASK2 … -o library")
