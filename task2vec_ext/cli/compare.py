"""`task2vec distances` and `task2vec nearest`: how close tasks are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from .._util.terminal import console, print_table
from ..words import DistanceName
from .options import Alpha, Folder, ReferenceFile, SkipUnreadable, SymDistance, distance_label, on_error, reference_for

if TYPE_CHECKING:
    from ..embedding import Embedding

_MATRIX_COLUMNS = 12  # tasks whose whole matrix is still readable in a terminal


def distances(
    folder: Folder,
    distance: Annotated[
        DistanceName,
        Option(help="Distance: sym is the paper's d_sym, asym its d_asym; docs/reference/distances.md has all."),
    ] = "sym",
    alpha: Alpha = 0.15,
    reference: ReferenceFile = None,
    csv: Annotated[Path | None, Option(help="Write the matrix to this CSV file.")] = None,
    png: Annotated[Path | None, Option(help="Plot the clustered matrix to this file (.png, .svg, .pdf).")] = None,
) -> None:
    """Compare the embeddings of a library.

    Prints all distances, or each task's nearest task if there are more than 12; --csv and --png write the matrix.
    """
    from .._util.tables import write_matrix
    from ..distance import distance_matrix
    from ..distance.nearest import nearest
    from ..library import load_embeddings
    from ..plot import check_installed, plot_matrix, save_figure

    embeddings = load_embeddings(folder)
    if len(embeddings) < 2:
        raise ValueError(f"distances: expected two or more embeddings in {folder}, found {len(embeddings)}.")
    names = embeddings.names()
    if png is not None:
        check_installed()
    how = reference_for(distance, reference, embeddings)
    matrix = distance_matrix(embeddings, distance, alpha=alpha, reference=how)
    if csv is not None:
        write_matrix(csv, names, matrix)
    if png is not None:
        called = distance_label(distance, alpha)
        save_figure(plot_matrix(matrix, names, distance=called, title="Distances between tasks"), png)
    if len(names) <= _MATRIX_COLUMNS:
        columns = ("", *map(str, range(1, len(names) + 1)))
        lines = zip(columns[1:], names, matrix.tolist(), strict=True)
        rows = [(f"{number}  {name}", *(f"{d:.3f}" for d in line)) for number, name, line in lines]
    else:
        columns = ("task", "nearest task", "distance")
        pairs = zip(names, nearest(matrix), strict=True)
        rows = [(name, names[other], f"{distance:.4f}") for name, (other, distance) in pairs]
    print_table(console(), columns, rows)
    for what, path in (("matrix", csv), ("plot", png)):
        if path is not None:
            print(f"{what:>8}: {path}")


def nearest(
    task: Annotated[
        str, Argument(metavar="TASK", help="A task in DIR, an embedding (.safetensors), or images: a folder or SPEC.")
    ],
    folder: Annotated[
        Path, Option("--library", metavar="DIR", help="A library, or a folder of embeddings (.safetensors).")
    ],
    weights: Annotated[
        str | None, Option(help="If TASK is images and the library's probe was a checkpoint: that file.")
    ] = None,
    k: Annotated[int, Option("-k", min=1, help="Number of nearest tasks.")] = 10,
    skip_unreadable: SkipUnreadable = False,
    distance: SymDistance = "sym",
    reference: ReferenceFile = None,
) -> None:
    """Find the tasks of a library nearest to a task."""
    from ..data import tasks_from
    from ..embed import Work, embed_like
    from ..embedding import Embedding
    from ..library import load_embeddings

    known = load_embeddings(folder)
    query: str | Embedding = task
    if task.endswith(".safetensors"):
        query = Embedding.load(task)
    elif task not in known.names() and (os.path.isdir(task) or ":" in task):
        tasks = tasks_from(task)
        if len(tasks) != 1:
            raise ValueError(f"nearest: expected one task, {task} has {len(tasks)}; add them with task2vec embed.")
        work = Work(on_error=on_error(skip_unreadable))
        query = embed_like(known.probe, known.settings, tasks[0], weights=weights, work=work)
    found = known.nearest(query, k, distance=distance, reference=reference_for(distance, reference, known))
    rows = [(str(number), name, f"{value:.4f}") for number, (name, value) in enumerate(found, 1)]
    print_table(console(), ("", "task", "distance"), rows)
