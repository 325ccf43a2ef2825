"""`task2vec library status | ls | export | merge | pull | push | rm | reference | verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .._util.terminal import printable
from .._util.words import counted
from .embed import print_entries
from .options import Folder

library = typer.Typer(help="Inspect, check and change a library.", no_args_is_help=True)

_MOST_ON_A_MAP = 2000  # tasks: more points hide each other

_Folder = Annotated[Path, Argument(metavar="DIR", help="The library's folder.")]


@library.command()
def status(folder: _Folder) -> None:
    """Print the library's state and settings.

    The state is how many tasks are done and failed, and how many files are damaged.
    """
    from ..library import Library

    opened = Library(folder)
    for state, count in opened.status().items():
        print(f"{state:>8}: {count}")
    print(f"{'probe':>20}: {opened.probe}")
    for key, value in opened.settings.to_json().items():
        print(f"{key:>20}: {value}")


@library.command()
def ls(
    folder: _Folder,
    failed: Annotated[bool, Option("--failed", help="Only the tasks that failed, with their errors.")] = False,
) -> None:
    """List the tasks."""
    from ..library import Library

    entries = Library(folder).entries()
    if not failed:
        print_entries(entries)
    for entry in entries:
        if failed and entry.state != "done":
            print(printable(f"{entry.name}: {entry.error}"))


@library.command()
def export(
    folder: _Folder, output: Annotated[Path, Option("--output", "-o", help="The file: .csv, or .parquet (extra).")]
) -> None:
    """Write a table with a row for every task.

    Name, images, outputs, scores of the head, norm and its standard error, digest of the images; classes and metadata
    as JSON.
    """
    from ..library import Library

    (opened := Library(folder)).export(output)
    print(f"{counted(sum(opened.status().values()), 'row')}: {output}")


@library.command()
def merge(
    folders: Annotated[list[Path], Argument(metavar="DIR...", help="The libraries' folders, which stay as they are.")],
    output: Annotated[Path, Option("--output", "-o", help="The new library's folder, or one to extend.")],
) -> None:
    """Make one library of several with the same probe and settings."""
    from ..library import merge_libraries

    print(f"{counted(merge_libraries(folders, output).status()['done'], 'task')}: {output}")


@library.command()
def pull(
    repo: Annotated[str, Argument(metavar="REPO", help="A data set on the hub, user/name, or a folder, ./name.")],
    output: Annotated[Path, Option("--output", "-o", help="The library's folder, or one to extend.")],
    revision: Annotated[str | None, Option(help="Branch, tag or commit; default: the newest.")] = None,
) -> None:
    """Download a library from the Hugging Face hub (extra hub), and check every file."""
    from ..library import pull_library

    print(f"{counted(pull_library(repo, output, revision=revision).status()['done'], 'task')}: {output}")


@library.command()
def push(
    folder: _Folder,
    repo: Annotated[str, Argument(metavar="REPO", help="A data set on the hub, user/name; made where there is none.")],
    license: Annotated[str, Option(help="The hub's name of a licence, such as cc-by-4.0.")] = "unknown",
    private: Annotated[bool | None, Option(help="Whether a new data set is private; default: as the account.")] = None,
) -> None:
    """Upload a library to the Hugging Face hub (extra hub), with a card.

    The card has a map where the extra plot is installed and the library has at most 2,000 tasks.
    """
    from ..library import push_library

    print(push_library(folder, repo, license=license, figure=_map_of(folder), private=private))


def _map_of(folder: Path) -> bytes | None:
    """Return a map of a library's tasks as PNG, None where it cannot be drawn."""
    import tempfile

    from .. import plot
    from ..distance import distance_matrix
    from ..library import load_embeddings

    try:
        plot.check_installed()
    except ImportError:
        return None
    if not 2 <= len(files := load_embeddings(folder)) <= _MOST_ON_A_MAP:
        return None
    ax = plot.plot_map(distance_matrix(files.without_groups()), files.names(), distance="d_sym")
    with tempfile.TemporaryDirectory() as made:
        plot.save_figure(ax, drawn := Path(made) / "map.png")
        return drawn.read_bytes()


@library.command()
def rm(folder: _Folder, names: Annotated[list[str], Argument(metavar="TASK...", help="Names of the tasks.")]) -> None:
    """Remove tasks and their embeddings."""
    from ..library import Library

    Library(folder).remove(names)


@library.command()
def reference(
    folder: Folder, output: Annotated[Path, Option("--output", "-o", help="The file, usually *.safetensors.")]
) -> None:
    """Write the reference of the tasks: what library_correlation is relative to.

    It is the default in DIR; --reference FILE uses it elsewhere, or in DIR after more tasks were added.
    """
    from ..library import load_embeddings

    made = load_embeddings(folder).reference()
    made.save(output)
    print(f"{made.num_tasks:,} tasks, digest {made.digest[:12]}: {output}")


@library.command()
def verify(folder: _Folder) -> None:
    """Check every file.

    The exit code is 1 if something is wrong.
    """
    from ..library import Library

    opened = Library(folder)
    for line in (wrong := opened.verify()):
        print(printable(line))
    if wrong:
        raise typer.Exit(1)
    print(f"{counted(opened.status()['done'], 'embedding')}, all sound")
