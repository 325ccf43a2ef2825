"""The demo: embed every demo task with the tiny probe, compare them, write what came out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from .._util.tables import nearest, safe_name, write_matrix, write_table
from ..atlas import write_atlas
from ..data import Task
from ..distance.distance import distance_matrix
from ..distance.rules import SymDistanceName
from ..embed.fisher_embed import fisher_embed
from ..plot import plot_matrix, save_figure
from ..probe.probe import load_probe
from .tasks import DemoTask, demo_tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..embedding import Embedding

DISTANCE: SymDistanceName = "sym_scaled"
"""Unit-mean scaling: it names a task's own family more often than plain d_sym, on these tasks and on real ones."""


class DemoResult(NamedTuple):
    """What the demo computed and where it wrote it."""

    tasks: list[DemoTask]
    embeddings: list[Embedding]
    distances: Tensor
    """``[T, T]``, distance `DISTANCE`."""
    files: dict[str, Path]
    """What → where."""
    seconds: float


def run_demo(folder: Path, *, seed: int = 0, report: Callable[[str], None] = lambda text: None) -> DemoResult:
    """Embed the demo's tasks and write embeddings, table, distances, image and atlas into `folder`.

    Args:
        folder: Is made if it does not exist; files of an earlier demo are replaced.
        seed: Of the tasks' images and of the embeddings' noise.
        report: Called with a line of text whenever there is something to tell.

    Returns:
        Embeddings, distances and files.
    """
    started = time.perf_counter()
    (folder / "embeddings").mkdir(parents=True, exist_ok=True)
    tasks = demo_tasks(seed)
    report(f"{len(tasks)} tasks, {sum(map(len, tasks)):,} images")
    probe, embeddings = load_probe("tiny"), []
    sources = [
        Task(
            task,
            name=task.name,
            classes=task.classes,
            labels=torch.tensor(task.labels),
            metadata={"domain": task.family},
        )
        for task in tasks
    ]
    for number, task in enumerate(sources, 1):
        embedding = fisher_embed(task, probe, seed=seed, batch_size=64, device="cpu", progress=False)
        embedding.save(folder / "embeddings" / f"{safe_name(task.name)}.safetensors")
        embeddings.append(embedding)
        report(f"[{number}/{len(tasks)}] {task.name}")
    distances = distance_matrix(embeddings, DISTANCE)
    names, families = [task.name for task in tasks], [str(task.family) for task in tasks]
    files = {
        "embeddings": folder / "embeddings",
        "table": folder / "tasks.csv",
        "distances": folder / "distances.csv",
        "image": folder / "distances.png",
        "atlas": folder / "atlas" / "index.html",
    }
    write_table(
        files["table"],
        ("task", "family", "classes", "images", "head_accuracy", "head_nll", "norm", "nearest", "distance"),
        [
            (
                e.name,
                family,
                e.head.num_outputs,
                e.num_samples,
                e.head.score,
                e.head.nll,
                e.norm,
                names[other],
                distance,
            )
            for e, family, (other, distance) in zip(embeddings, families, nearest(distances), strict=True)
        ],
    )
    write_matrix(files["distances"], names, distances)
    axes = plot_matrix(
        distances, names, groups=families, title="Distance between tasks (d_sym of unit-mean embeddings)"
    )
    save_figure(axes, files["image"])
    report("the atlas")
    write_atlas(embeddings, folder / "atlas", images=sources, distance=DISTANCE, title="The demo's tasks", seed=seed)
    return DemoResult(tasks, embeddings, distances, files, time.perf_counter() - started)
