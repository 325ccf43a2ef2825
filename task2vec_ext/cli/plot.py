"""``task2vec plot`` and ``task2vec atlas``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from .._util.words import counted
from ..words import DistanceName
from .options import Alpha, Folder, ReferenceFile, SymDistance, distance_label, reference_for

if TYPE_CHECKING:
    from torch import Tensor

    from ..embedding import Embedding
    from ..plot import Lineages

ColourBy = Annotated[
    str | None,
    Option(
        "--colour-by",
        "--group-by",
        help="Colour tasks by domain, or by a rank of the taxonomy; default: domain, else the first of --taxonomy.",
    ),
]
Taxonomy = Annotated[
    Path | None, Option(help="CSV: task and ranks, highest first, one row per class; default: the embeddings' own.")
]
PlotKind = Literal["matrix", "map", "taxonomy", "norms", "layers"]


def plot(
    folder: Folder,
    kind: Annotated[
        PlotKind,
        Option(
            help="matrix: all distances; map: t-SNE or UMAP; taxonomy: taxonomic distance of the nearest tasks; "
            "norms: norm against error of the head; layers: the Fisher of a few tasks by layer."
        ),
    ],
    output: Annotated[Path, Option("--output", "-o", help="The plot: a .png, .svg or .pdf file.")],
    distance: Annotated[DistanceName, Option(help="matrix, map, taxonomy: the distance.")] = "sym",
    alpha: Alpha = 0.15,
    reference: ReferenceFile = None,
    method: Annotated[Literal["tsne", "umap"], Option(help="map: the method (umap: extra umap).")] = "tsne",
    colour_by: ColourBy = None,
    taxonomy: Taxonomy = None,
    task: Annotated[list[str] | None, Option(help="layers: the task; may be repeated to compare tasks.")] = None,
    title: Annotated[str | None, Option(help="Title of the plot.")] = None,
    seed: Annotated[int, Option(help="Seed of the map.")] = 0,
) -> None:
    """Plot the tasks of a library."""
    from .. import plot as draw
    from ..distance import distance_matrix
    from ..library import load_embeddings
    from ..plot.figure import check_suffix

    draw.check_installed()
    check_suffix(output)
    files = load_embeddings(folder)
    embeddings = files.without_groups()
    ranks, lineages = _taxonomy(embeddings, taxonomy)
    called = distance_label(distance, alpha)

    def compare(some: list[Embedding]) -> Tensor:
        how = reference_for(distance, reference, files)
        return distance_matrix(some, distance, alpha=alpha, reference=how)

    if kind == "layers":
        ax = draw.plot_layers(_chosen(files, [e.name for e in embeddings], task or []), title=title)
    elif kind == "norms":
        groups = _groups(embeddings, colour_by, taxonomy, ranks, lineages)
        ax = draw.plot_norms(files, groups=groups, title=title)
    elif kind == "taxonomy":
        placed = [e for e in embeddings if e.name in lineages]
        if len(placed) < 2:
            raise ValueError(
                f"plot: expected two or more tasks with a place in a taxonomy, got {len(placed)} of "
                f"{len(embeddings)}; name a table of them with --taxonomy."
            )
        steps = draw.taxonomic_distances([lineages[e.name] for e in placed], ranks)
        matrix = compare(placed)
        ax = draw.plot_taxonomy(matrix, steps, ranks=ranks, distance=called, title=title)
    else:
        names, groups = [e.name for e in embeddings], _groups(embeddings, colour_by, taxonomy, ranks, lineages)
        matrix = compare(embeddings)
        if kind == "map":
            how: dict[str, Any] = {"method": method, "seed": seed}
            ax = draw.plot_map(matrix, names, groups=groups, distance=called, title=title, **how)
        else:
            ax = draw.plot_matrix(matrix, names, groups=groups, distance=called, title=title)
    draw.save_figure(ax, output)
    print(f"{kind}: {output}")


def atlas(
    folder: Folder,
    output: Annotated[Path, Option("--output", "-o", help="Folder for the page.")] = Path("atlas"),
    distance: SymDistance = "sym",
    reference: ReferenceFile = None,
    images: Annotated[
        list[str] | None, Option(metavar="SPEC", help="The tasks' images, as given to task2vec embed; may be repeated.")
    ] = None,
    selection: Annotated[
        Path | None,
        Option(help="Also show the best experts: output of task2vec select TASK --json, for one or more tasks."),
    ] = None,
    k: Annotated[int, Option("-k", min=1, help="Number of nearest tasks to list.")] = 10,
    colour_by: ColourBy = None,
    taxonomy: Taxonomy = None,
    title: Annotated[str, Option(help="Title of the page.")] = "Atlas of tasks",
    seed: Annotated[int, Option(help="Seed of the map.")] = 0,
) -> None:
    """Write one HTML page to browse a library's tasks.

    The page needs no network and no server.
    """
    from ..atlas import write_atlas
    from ..data import tasks_from
    from ..library import load_embeddings
    from ..plot import check_installed

    check_installed()
    files = load_embeddings(folder)
    tasks = tasks_from(*images) if images else ()
    experts = None if selection is None else _experts(selection)
    groups = None
    if colour_by is not None or taxonomy is not None:
        embeddings = files.without_groups()
        groups = _groups(embeddings, colour_by, taxonomy, *_taxonomy(embeddings, taxonomy))
    how: dict[str, Any] = {"distance": distance, "k": k, "title": title, "seed": seed}
    how["reference"] = reference_for(distance, reference, files)
    page = write_atlas(files, output, images=tasks, experts=experts, groups=groups, **how)
    size = f"{counted(len(files), 'task')}, {page.stat().st_size / 1e6:.1f} MB"
    print(f"{size}: open {page.resolve().as_uri()} in a browser")


def _experts(file: Path) -> dict[str, Any]:
    """Return task -> experts, best first, from a file to which ``task2vec select TASK --json`` was appended."""
    found, text, decoder = {}, file.read_text(encoding="utf-8").strip(), json.JSONDecoder()
    try:
        while text:
            one, end = decoder.raw_decode(text)
            found[one["task"]] = [
                {"name": expert["name"], "score": None if expert["score"] is None else float(expert["score"])}
                for expert in one["experts"]
            ]
            text = text[end:].lstrip()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"atlas: expected the output of task2vec select TASK --json in {file}, got something else ({error})."
        ) from error
    return found


def _chosen(files: Sequence[Embedding], names: list[str], wanted: list[str]) -> list[Embedding]:
    """Return the wanted embeddings, with their group means."""
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise ValueError(
            f"plot: expected --task NAME, once for each task to compare, got {', '.join(unknown) or 'none'}; "
            "task2vec library ls lists the names."
        )
    return [files[names.index(name)] for name in wanted]


def _taxonomy(embeddings: list[Embedding], table: Path | None) -> tuple[tuple[str, ...], dict[str, Lineages]]:
    """Return the ranks and task -> lineages of a table, or of the embeddings."""
    from ..data.sources.taxonomy import RANKS
    from ..plot import read_taxonomy

    if table is not None:
        return read_taxonomy(table)
    lineages: dict[str, Lineages] = {
        e.name: [{rank: str(taxon) for rank, taxon in taxa.items()}]
        for e in embeddings
        if isinstance(taxa := e.metadata.get("taxonomy"), dict) and taxa
    }
    ranks = {rank for of_task in lineages.values() for taxa in of_task for rank in taxa}
    known = tuple(rank for rank in RANKS if rank in ranks)
    return (*sorted(ranks - set(known)), *known), lineages


def _groups(
    embeddings: list[Embedding],
    by: str | None,
    table: Path | None,
    ranks: tuple[str, ...],
    lineages: dict[str, Lineages],
) -> list[str] | None:
    """Return the group that colours each task, or None where no task has one."""
    domains = [e.metadata.get("domain") for e in embeddings]
    if by is None:
        by = ranks[0] if table is not None and not any(domains) else "domain"
    if table is not None and not lineages.keys() & {e.name for e in embeddings}:
        raise ValueError(f"plot: expected tasks of these embeddings in {table}, found none of them; correct the names.")
    if by in ranks:
        taxa = [{taxa.get(by, "unknown") for taxa in lineages.get(e.name, ())} for e in embeddings]
        return [" or ".join(sorted(one)) if 0 < len(one) <= 2 else "several" if one else "unknown" for one in taxa]
    if by != "domain":
        known = ", ".join(("domain", *ranks))
        raise ValueError(f"plot: expected --colour-by to be one of {known}; got {by!r}.")
    return [str(domain or "unknown") for domain in domains] if any(domains) else None
