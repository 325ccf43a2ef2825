"""The page, from embeddings."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._util.atomic import atomic_path
from .._util.words import check_word
from ..data import Task
from ..distance import Reference, check_comparable, distance_matrix
from ..embedding import Embedding
from ..plot import cluster_order, map_positions
from ..plot.figure import looks
from ..plot.labels import spread_order
from ..plot.norms import norm_interval
from ..words import SymDistanceName
from .neighbours import nearest_tasks
from .sheets import contact_sheet

Experts = Mapping[str, Sequence[Mapping[str, Any]]]
"""Task -> its experts, best first, each ``{"name": …, "score": number or None}``."""

_SCRIPTS = ("data.js", "view.js", "map.js", "matrix.js", "panel.js", "main.js")
_MOST_CLASSES = 200  # class names that are listed; a task may have thousands
_CALLED: dict[SymDistanceName, str] = {
    "sym": "d_sym",
    "sym_scaled": "d_sym of embeddings scaled to unit mean",
    "library_correlation": "1 − correlation of differences from the library's mean log-Fisher",
}
_DIGITS = 5  # significant digits, more than any number on the page deserves


def write_atlas(
    embeddings: Sequence[Embedding],
    folder: str | os.PathLike[str],
    *,
    images: Iterable[Task] = (),
    experts: Experts | None = None,
    groups: Sequence[str] | None = None,
    distance: SymDistanceName = "sym",
    reference: Reference | None = None,
    k: int = 10,
    title: str = "Atlas of tasks",
    seed: int = 0,
) -> Path:
    """Write a page with a map and a matrix of the tasks, search, and the nearest tasks of each.

    Args:
        embeddings: One or more, comparable, with different names, none all zero. A task's domain is that of its
            ``metadata``.
        folder: Folder for ``index.html``; made if it does not exist.
        images: Tasks to take small images from, matched by name; others are ignored.
        experts: The experts that selection found, or None.
        groups: A group name for each embedding, which colours it; default: the tasks' domains.
        distance: Which distance.
        reference: As for `distance_matrix`.
        k: Number of nearest tasks that are listed, with intervals.
        title: Title of the page.
        seed: Seed of the map.

    Returns:
        The page. It is one file and needs no server and no network.

    Raises:
        ValueError: If there are no embeddings, two have one name, they do not compare, there are not as many groups, or
            the distance is unknown.
        ImportError: If scipy or scikit-learn is not installed.
        OSError: If the page could not be written.

    Note:
        Embeddings that come from files are read twice. Only a few are in memory with their group means at a time.
    """
    check_word("write_atlas", "distance", distance, SymDistanceName)
    rows, fisher, first = [], [], None
    for embedding in embeddings:
        first = first or embedding
        check_comparable([reference or first, embedding])
        rows.append(_row(embedding))
        fisher.append(embedding.fisher)
    if first is None:
        raise ValueError("write_atlas: expected one or more embeddings, got none.")
    if groups is not None:
        if len(groups) != len(rows):
            raise ValueError(f"write_atlas: expected {len(rows)} groups, one per embedding, got {len(groups)}.")
        for row, group in zip(rows, groups, strict=True):
            row["domainName"] = group
    names = [row["name"] for row in rows]
    if twins := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"write_atlas: expected tasks with different names, got {sorted(twins)[:5]} more than once.")
    distances = distance_matrix(torch.stack(fisher), distance, reference=reference)
    order, places = cluster_order(distances), map_positions(distances, seed=seed)
    for index, near in nearest_tasks(embeddings, distances, k, distance, order, reference):
        rows[index]["near"] = [[j, *map(_rounded, values)] for j, *values in near]
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
        "distance": _CALLED[distance],
        "probe": f"{first.probe.name} ({first.probe.weights})",
        "domains": _place_domains(rows),
        "tasks": rows,
        "order": order,
        "spread": spread_order(places),
        **_packed(distances.numpy()),
    }
    page = Path(folder).expanduser() / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(page) as temporary:
        temporary.write_text(_page(title, data), encoding="utf-8", errors="backslashreplace")
    return page


def _row(embedding: Embedding) -> dict[str, Any]:
    interval = (None, None) if embedding.group_means is None else norm_interval(embedding)
    domain = embedding.metadata.get("domain")
    return {
        "name": embedding.name,
        "domainName": str(domain) if domain else None,
        "domain": None,
        "classes": None if embedding.classes is None else list(embedding.classes[:_MOST_CLASSES]),
        "outputs": embedding.head.num_outputs,
        "images": embedding.num_samples,
        "norm": [_rounded(value) for value in (embedding.norm, *interval)],
        "score": _rounded(embedding.head.best_score),
        "metric": f"{embedding.head.protocol} {embedding.head.metric}",
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
    """Return the upper triangle in 16 bits a distance: 3 MB at 1,500 tasks."""
    upper = distances[np.triu_indices(len(distances), 1)]
    low, high = (float(upper.min()), float(upper.max())) if upper.size else (0.0, 1.0)
    levels = np.round((upper - low) / max(high - low, 1e-300) * 65535).astype("<u2")
    return {"low": low, "high": high, "distances": base64.b64encode(levels.tobytes()).decode()}


def _page(title: str, data: dict[str, Any]) -> str:
    def read(name: str) -> str:
        return (files(__package__) / "page" / name).read_text(encoding="utf-8")

    # Escaped, so that no text in the data can end the script element or begin a comment.
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    script = "\n".join(map(read, _SCRIPTS))
    parts = {"title": html.escape(title), "style": read("style.css"), "data": text, "script": script}
    # In one pass, because the parts may themselves contain such placeholders.
    return re.sub(r"\{(title|style|data|script)\}", lambda found: parts[found[1]], read("index.html"))
