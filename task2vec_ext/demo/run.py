"""The demo: embeds its tasks with the tiny probe, compares them, writes the results."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._util.names import safe_name
from .._util.tables import write_matrix, write_table
from ..atlas import write_atlas
from ..data import Task
from ..distance import distance_matrix
from ..distance.nearest import nearest
from ..embed import fisher_embed
from ..embedding import Embedding
from ..plot import plot_matrix, save_figure
from ..probe import load_probe
from ..words import SymDistanceName
from .tasks import DemoTask, demo_tasks

DISTANCE: SymDistanceName = "sym_scaled"
"""On these tasks, as on real ones, the nearest task is of the same family more often than with plain d_sym."""


class DemoResult(NamedTuple):
    """What the demo computed and the files it wrote."""

    tasks: list[DemoTask]
    embeddings: list[Embedding]
    distances: Tensor  # [T, T], `DISTANCE`
    files: dict[str, Path]
    seconds: float


def run_demo(folder: Path, *, seed: int = 0, report: Callable[[str], None] = lambda text: None) -> DemoResult:
    """Embed the demo's tasks and write embeddings, tables, a plot and the atlas into a folder, replacing older ones.

    The seed is that of images and embeddings; `report` is called with a line of text at every step.
    """
    started = time.perf_counter()
    files = {
        "atlas": folder / "atlas" / "index.html",
        "plot": folder / "distances.png",
        "distances": folder / "distances.csv",
        "table": folder / "tasks.csv",
        "embeddings": folder / "embeddings",
    }
    files["embeddings"].mkdir(parents=True, exist_ok=True)
    report("making the images …")
    tasks = demo_tasks(seed)
    names, families = [task.name for task in tasks], [str(task.family) for task in tasks]
    sources = [
        Task(t, name=t.name, classes=t.classes, labels=torch.tensor(t.labels), metadata={"domain": t.family})
        for t in tasks
    ]
    probe, embeddings = load_probe("tiny"), []
    for number, task in enumerate(sources, 1):
        report(f"embedding task {number} of {len(tasks)}: {task.name}")
        embedding = fisher_embed(task, probe, seed=seed, batch_size=64, device="cpu", progress=False)
        embedding.save(files["embeddings"] / f"{safe_name(task.name)}.safetensors")
        embeddings.append(embedding)
    report("comparing the tasks …")
    distances = distance_matrix(embeddings, DISTANCE)
    rows = [
        (
            e.name,
            family,
            e.head.num_outputs,
            e.num_samples,
            e.head.best_score,
            e.head.best_nll,
            e.norm,
            names[other],
            distance,
        )
        for e, family, (other, distance) in zip(embeddings, families, nearest(distances), strict=True)
    ]
    columns = ("task", "family", "classes", "images", "head_accuracy", "head_nll", "norm", "nearest", "distance")
    write_table(files["table"], columns, rows)
    write_matrix(files["distances"], names, distances)
    title = "Distance between tasks (d_sym of unit-mean embeddings)"
    save_figure(plot_matrix(distances, names, groups=families, distance=f"d_{DISTANCE}", title=title), files["plot"])
    write_atlas(
        embeddings, files["atlas"].parent, images=sources, distance=DISTANCE, title="The demo's tasks", seed=seed
    )
    return DemoResult(tasks, embeddings, distances, files, time.perf_counter() - started)
