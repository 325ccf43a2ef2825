"""`task2vec demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._util.terminal import console as _console
from .._util.terminal import print_table as _print_table


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("task2vec-demo"),
    seed: Annotated[int, typer.Option(help="Seed of images and embeddings.")] = 0,
) -> None:
    """See it work: tasks made from real handwriting, photographs and drawings, embedded and compared.

    Needs no network: the images come from scikit-learn and from a drawing program, the probe from this package.
    """
    from ..demo.run import run_demo
    from ..plot import check_installed

    check_installed()
    _check_writable("demo", output)
    console = _console()
    with console.status("drawing the images …") as status:
        result = run_demo(output, seed=seed, report=status.update)
    from .._util.tables import nearest

    rows = [
        (
            e.name,
            str(task.family),
            str(e.head.num_outputs),
            f"{e.head.score:.0%}",
            f"{e.norm:.3g}",
            result.tasks[other].name,
            f"{distance:.3f}",
        )
        for task, e, (other, distance) in zip(result.tasks, result.embeddings, nearest(result.distances), strict=True)
    ]
    _print_table(console, ("task", "family", "classes", "head", "norm", "nearest task", "distance"), rows)
    own = sum(
        task.family == result.tasks[other].family
        for task, (other, _) in zip(result.tasks, nearest(result.distances), strict=True)
    )
    console.print(
        f"\n{own} of {len(rows)} tasks have their nearest neighbour in their own family. ({result.seconds:.0f} s)"
    )
    for what, path in result.files.items():
        print(f"{what:>10}: {path}")
    print(f"Open {result.files['atlas'].resolve().as_uri()} in a browser to look around.")


def _check_writable(who: str, folder: Path) -> None:
    """Find out now, not after the first hour."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OSError(f"{who}: cannot write into {folder} ({error.strerror}); choose another --output.") from error
