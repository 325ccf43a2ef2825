"""From embeddings to the page."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._util.atomic import atomic_path
from ..distance.comparable import check_comparable
from ..distance.distance import distance_matrix
from ..plot import cluster_order, map_positions
from ..plot._figure import looks
from ..plot._labels import spread_order
from ..plot.norms import norm_of
from .neighbours import nearest_tasks
from .sheets import contact_sheet

if TYPE_CHECKING:
    from ..data import Task
    from ..distance.rules import SymDistanceName
    from ..embedding import Embedding

Experts = Mapping[str, Sequence[Mapping[str, Any]]]
"""Task -> its experts, the best first: ``{"name": …, "score": …}`` each, the score a number or None."""

_SCRIPTS = ("data.js", "view.js", "map.js", "matrix.js", "panel.js", "main.js")
_MOST_CLASSES = 200  # names of classes that are listed; a task may have thousands
_DIGITS = 5  # significant ones of numbers on the page: less than any of them is sure


def write_atlas(
    embeddings: Sequence[Embedding],
    folder: str | os.PathLike[str],
    *,
    images: Iterable[Task] = (),
    experts: Experts | None = None,
    distance: SymDistanceName = "sym",
    k: int = 10,
    title: str = "Atlas of tasks",
    seed: int = 0,
) -> Path:
    """Write a page that shows tasks on a map and in a matrix, with search and the nearest of each.

    Args:
        embeddings: One or more, comparable, of different names, none all zero. Their domains are those of
            ``metadata``.
        folder: Where ``index.html`` is put; made if it does not exist.
        images: Tasks again, to take small images from; matched by name, those of no embedding are ignored.
        experts: What selection found, or None.
        distance: Which distance.
        k: How many nearest tasks are listed, with their intervals.
        title: Of the page.
        seed: Of the map.

    Returns:
        The page. It needs nothing but itself: no server, no network.

    Raises:
        ValueError: If there are no embeddings, two have one name, or they do not compare.
        ImportError: If scipy or scikit-learn is not installed.
        OSError: If the page could not be written.

    Note:
        Embeddings are read twice where they come from files; not more than a few are in memory with their group means.
    """
    rows, fisher, first = [], [], None
    for embedding in embeddings:
        first = first or embedding
        check_comparable([first, embedding])
        rows.append(_row(embedding))
        fisher.append(embedding.fisher)
    if first is None:
        raise ValueError("write_atlas: expected one or more embeddings, got none.")
    names = [row["name"] for row in rows]
    if twins := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"write_atlas: expected tasks of different names, got {sorted(twins)[:5]} more than once.")
    distances = distance_matrix(torch.stack(fisher), distance)
    order, places = cluster_order(distances), map_positions(distances, seed=seed)
    for index, near in nearest_tasks(embeddings, distances, k, distance, order):
        rows[index]["near"] = [[j, *map(_rounded, figures)] for j, *figures in near]
    by_name = dict(zip(names, rows, strict=True))
    for task in images:
        if task.name in by_name:
            by_name[task.name]["sheet"] = contact_sheet(task)
    for name, found in (experts or {}).items():
        if name in by_name:
            by_name[name]["experts"] = [[str(expert["name"]), _rounded(expert["score"])] for expert in found]
    for row, (x, y) in zip(rows, places.tolist(), strict=True):
        row.update(x=round(x, 4), y=round(y, 4))
    data = {
        "title": title,
        "kind": {"sym": "d_sym", "sym_scaled": "d_sym of embeddings scaled to unit mean"}[distance],
        "probe": f"{first.probe.name} {first.probe.weights}",
        "domains": _place_domains(rows),
        "tasks": rows,
        "order": order,
        "spread": spread_order(places),
        **_packed(distances.numpy()),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    page = Path(folder) / "index.html"
    with atomic_path(page) as temporary:
        temporary.write_text(_page(title, data), encoding="utf-8", errors="backslashreplace")
    return page


def domain_of(embedding: Embedding) -> str | None:
    """Return the domain that an embedding's recipe states, or None."""
    metadata = embedding.metadata
    domain = metadata.get("domain") if isinstance(metadata, dict) else None
    return str(domain) if domain else None


def _row(embedding: Embedding) -> dict[str, Any]:
    norm = norm_of(embedding)
    bounds = (None, None) if embedding.group_means is None else (_rounded(norm.low), _rounded(norm.high))
    return {
        "name": embedding.name,
        "domainName": domain_of(embedding),
        "domain": None,
        "classes": None if embedding.classes is None else list(embedding.classes[:_MOST_CLASSES]),
        "outputs": embedding.head.num_outputs,
        "images": embedding.num_samples,
        "norm": [_rounded(norm.value), *bounds],
        "score": _rounded(embedding.head.score),
        "metric": embedding.head.metric,
        "sheet": None,
        "experts": [],
    }


def _place_domains(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Number the tasks' domains, and return how each is drawn."""
    placed = [row for row in rows if row["domainName"] is not None]
    groups, styles = looks([row["domainName"] for row in placed])
    for row, group in zip(placed, groups, strict=True):
        row["domain"] = list(styles).index(group)
    return [{"name": name, "colour": look.colour, "marker": look.marker} for name, look in styles.items()]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _packed(distances: np.ndarray) -> dict[str, Any]:
    """The upper triangle in 16 bits a distance: 3 MB at 1,500 tasks."""
    upper = distances[np.triu_indices(len(distances), 1)]
    low, high = (float(upper.min()), float(upper.max())) if upper.size else (0.0, 1.0)
    levels = np.round((upper - low) / max(high - low, 1e-300) * 65535).astype("<u2")
    return {"low": low, "high": high, "distances": base64.b64encode(levels.tobytes()).decode()}


def _page(title: str, data: dict[str, Any]) -> str:
    source = files(__package__) / "page"

    def read(name: str) -> str:
        return (source / name).read_text(encoding="utf-8")

    parts = {
        "title": html.escape(title),
        "style": read("style.css"),
        "data": _script_safe(data),
        "script": "\n".join(map(read, _SCRIPTS)),
    }
    # In one pass: what is put in may itself look like a place to put something in.
    return re.sub(r"\{(title|style|data|script)\}", lambda found: parts[found[1]], read("index.html"))


def _script_safe(data: dict[str, Any]) -> str:
    """JSON in ASCII in which nothing can end the script element or begin a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
