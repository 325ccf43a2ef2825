"""Does the Fisher of a few images describe the task? One head of all images against a head for each fold.

    python benchmarks/cross_fit.py --data DIR [--tasks NAME …] [--draws 20] [--protocols in_sample cross_fit_5 …]

Draws of N images of real tasks, each with heads of its own, against the same protocol on 800 images:

- ``in_sample``: one head, fitted to all images (the paper's protocol);
- ``cross_fit_K``: K folds, the head of an image fitted to the other folds (`HeadSettings.cross_fit`);
- ``newton``: one head, and for each image a Newton step to the head without this image (its closed-form influence).

``_l2_X`` behind a protocol sets the head's penalty; version 0.2 was ``in_sample_l2_0.01``. Draws are without
replacement, of tasks of 900 images and more. Rows are kept in ``--cache``, and the figures made from
whatever is there. Also draws docs/cross_fit.png.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from statistics import median

import _image_fisher
import _tasks
import torch
from _intervals import d_sym, grouped, norm
from _record import write_record
from torch import Tensor

from task2vec_ext import Probe, Task
from task2vec_ext.data import Batch
from task2vec_ext.fisher import CrossFitHead, Head, HeadSettings, fit_cross_fit_head, fit_head, per_sample_fisher
from task2vec_ext.fisher.head import HeadFit
from task2vec_ext.jackknife import CROSS_FIT_SPREAD, Estimate, Groups, group_sizes
from task2vec_ext.kernels.pairwise import sym_distances
from task2vec_ext.losses import CrossEntropy
from task2vec_ext.plot import save_figure
from task2vec_ext.probe.folding import fold

TASKS = (
    "cifar10",
    "mnist",
    "clothing10",
    "cub_passeriformes_families",
    "taxa_magnoliopsida_orders",
    "flowers12",
)
FULL = 800
"""Images of the embedding that stands for the whole task."""


def main() -> None:
    """Draw and embed, then count, write and draw."""
    parser = _tasks.parser(__doc__)
    parser.set_defaults(image_size=96)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="two or more names in tasks.json")
    parser.add_argument("--protocols", nargs="+", default=["cross_fit_5", "in_sample_l2_0.01"])
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--draws", type=int, default=18, help="of each task and size")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "task2vec-draws", help="folder that keeps the draws"
    )
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs" / "cross_fit.png")
    options = parser.parse_args()

    options.cache.mkdir(parents=True, exist_ok=True)
    net = _tasks.probe(options)
    for task in _tasks.real_tasks(options.data, only=options.tasks):
        population = Population(task.name, net, options.cache, task)
        for protocol in options.protocols:
            if not protocol.startswith("newton"):  # whose Hessian has (C·D)² numbers there
                population.embed(protocol, FULL, 0)
            for samples, draw in itertools.product(options.samples, range(options.draws)):
                population.embed(protocol, samples, draw)
    draws = {name: Draws(options.cache, name) for name in options.tasks}
    rows = [row for name in options.tasks for row in draws[name].rows()]
    coverage = [
        found
        for key in sorted({key for one in draws.values() for key in one.found})
        if (found := _coverage(draws, *key))
    ]
    result = {
        "probe": options.probe,
        "image_size": options.image_size,
        "full": FULL,
        "rows": rows,
        "coverage": coverage,
    }
    for row in [*rows, *coverage]:
        print(row)
    print(write_record("cross_fit", result))
    _draw(rows, options.figure)


class Population:
    """A task's images, their features, and the embeddings of draws of them."""

    def __init__(self, name: str, probe: Probe, cache: Path, task: Task) -> None:
        """Remember the task; nothing is read unless a draw is missing."""
        self.name, self.cache, self.task, self.plain, self.layers = name, cache, task, probe, probe.layers()

    @cached_property
    def images(self) -> Batch:
        """All images."""
        return _image_fisher.read(self.task, self.plain)

    @cached_property
    def probe(self) -> Probe:
        """The probe, folded."""
        return fold(self.plain, self.layers, self.images.images[:1])

    @cached_property
    def features(self) -> Tensor:
        """The features of all images."""
        with torch.no_grad():
            return torch.cat([self.probe.features(part.images) for part in _image_fisher.split(self.images)])

    def embed(self, protocol: str, samples: int, draw: int) -> None:
        """Compute the embedding of a draw, and keep its groups, unless that was done before."""
        path = self.cache / f"{self.name}-{protocol}-{samples}-{draw}.pt"
        if path.exists():
            return
        generator = torch.Generator().manual_seed(1000 * samples + draw)  # the same images for every protocol
        rows = torch.randperm(len(self.features), generator=generator)[:samples]
        labels = self.images.labels[rows].unique(return_inverse=True)[1]  # a draw may miss a class
        heads = heads_of(protocol, self.features[rows], labels)
        some = Batch(torch.arange(len(rows)), self.images.images[rows], labels)
        fisher = torch.cat(
            [per_sample_fisher(self.probe, self.layers, heads, part) for part in _image_fisher.split(some)]
        )
        groups = grouped(fisher)
        torch.save({"mean": groups.mean, "groups": groups.means, "samples": samples}, path)
        print(f"{path.stem}: norm {float(groups.mean.sum()):.4g}", flush=True)


class Draws:
    """All draws of a task in the cache, by protocol and number of images."""

    def __init__(self, cache: Path, name: str) -> None:
        """Read them."""
        self.name = name
        self.found: dict[tuple[str, int], list[Groups]] = {}
        for file in sorted(cache.glob(f"{name}-*.pt")):
            protocol, samples, _ = file.stem.removeprefix(f"{name}-").rsplit("-", 2)
            kept = torch.load(file)
            sizes = group_sizes(kept["samples"], len(kept["groups"]))
            spread = CROSS_FIT_SPREAD if protocol.startswith("cross_fit") else 1.0
            groups = Groups(kept["mean"], kept["groups"], sizes, spread)
            self.found.setdefault((protocol, int(samples)), []).append(groups)

    def full(self, protocol: str) -> Groups:
        """Return the embedding of 800 images; a Newton step is compared with that of five folds."""
        return self.found[
            "cross_fit_5" + protocol.removeprefix("newton") if protocol.startswith("newton") else protocol, FULL
        ][0]

    def rows(self) -> Iterator[dict]:
        """Yield, for each protocol and number of images, how far the draws are from 800 images: medians."""
        for (protocol, samples), draws in sorted(self.found.items()):
            if samples == FULL:
                continue
            full = self.full(protocol)
            ratios = [float(one.mean.sum() / full.mean.sum()) for one in draws]
            yield {
                "task": self.name,
                "protocol": protocol,
                "samples": samples,
                "draws": len(draws),
                "norm_ratio": median(ratios),
                "norm_ratio_range": [min(ratios), max(ratios)],
                "relative_error": median(float((one.mean - full.mean).norm() / full.mean.norm()) for one in draws),
                "d_sym": median(float(d_sym(one, full).value) for one in draws),
                "d_sym_corrected": median(float(d_sym(one, full).corrected) for one in draws),
                "spread_by_standard_error": _spread([norm(one) for one in draws]),
            }


def _spread(norms: list[Estimate]) -> float | None:
    """Return the standard deviation of the norm over draws ÷ the root mean square of the standard errors."""
    if len(norms) < 8:
        return None
    values = torch.stack([one.value for one in norms])
    return float(values.std() / torch.stack([one.standard_error for one in norms]).square().mean().sqrt())


def _coverage(draws: dict[str, Draws], protocol: str, samples: int) -> dict | None:
    """Return how often 95 % intervals hold the mean over draws of as many images, and 800 images' value."""
    every = {name: one.found.get((protocol, samples), []) for name, one in draws.items()}
    if samples == FULL or min(map(len, every.values())) < 8:
        return None
    means = {name: torch.stack([one.mean for one in some]).mean(0) for name, some in every.items()}
    fulls = {name: one.full(protocol).mean for name, one in draws.items()}
    hits: dict[str, list[bool]] = {key: [] for key in ("norm", "norm_full", "d_sym", "d_sym_full")}

    def judge(what: str, one: Estimate, truth: Tensor) -> None:
        low, high = one.interval()
        hits[what].append(bool(low <= truth <= high))

    for a, b in itertools.pairwise([*every, next(iter(every))]):
        for one, other in zip(every[a], every[b], strict=False):
            for suffix, truth in (("", means), ("_full", fulls)):
                judge("norm" + suffix, norm(one), truth[a].sum())
                judge("d_sym" + suffix, d_sym(one, other), sym_distances(truth[a][None], truth[b][None])[0, 0])
    shares = {key: sum(found) / len(found) for key, found in hits.items()}
    return {"protocol": protocol, "samples": samples, "draws": len(hits["norm"]), **shares}


def _draw(rows: list[dict], path: Path) -> None:
    """Draw the norm against the number of images, one head against a head for each fold."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    panels = (
        ("in_sample_l2_0.01", "one head of all images (the paper)"),
        ("cross_fit_5", "a head for each of 5 folds"),
    )
    for ax, (protocol, title) in zip(axes, panels, strict=True):
        for task in dict.fromkeys(row["task"] for row in rows):
            own = [row for row in rows if (row["task"], row["protocol"]) == (task, protocol)]
            x = [row["samples"] for row in own]
            line = ax.plot(
                [*x, FULL], [*(row["norm_ratio"] for row in own), 1], marker=".", label=task.replace("_", " ")
            )[0]
            low, high = zip(*(row["norm_ratio_range"] for row in own), strict=True)
            ax.fill_between(x, low, high, color=line.get_color(), alpha=0.12, lw=0)
        ax.axhline(1, color="0.6", lw=0.8, zorder=0)
        ax.set(title=title, xlabel="images", xscale="log", yscale="log")
        ticks = [*sorted({row["samples"] for row in rows}), FULL]
        ax.set_xticks(ticks, map(str, ticks), minor=False)
        ax.set_xticks([], minor=True)
        ax.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
        ax.set_yticks([], minor=True)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(f"norm ÷ norm at {FULL} images")
    axes[1].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(axes[0], path)


def heads_of(protocol: str, features: Tensor, labels: Tensor) -> Head | CrossFitHead:
    """Return the head of every image, by protocol."""
    classes, loss = int(labels.max()) + 1, CrossEntropy()
    name, _, penalty = protocol.partition("_l2_")
    l2 = float(penalty) if penalty else None
    if name == "in_sample":
        return fit_head(features, labels, classes, l2=l2)
    if name == "newton":
        return newton_heads(features, labels, classes, l2)
    settings = HeadSettings(cross_fit=int(name.removeprefix("cross_fit_")), l2=l2)
    return fit_cross_fit_head(features, labels, classes, torch.arange(len(labels)), loss, settings, 0)


def newton_heads(features: Tensor, labels: Tensor, classes: int, l2: float | None) -> CrossFitHead:
    """Return, for each image, the head of all images after one Newton step on the objective without this image.

    With x the whitened features and a 1, r = p − e_y and S = diag(p) − ppᵀ of the image, and H the Hessian:
    ``H₋ₙ⁻¹(x ⊗ r)/N = H⁻¹(x ⊗ (I − S·A)⁻¹r)/N`` with ``A = (xᵀ ⊗ I)H⁻¹(x ⊗ I)/N``.
    """
    fit = HeadFit(features, labels, classes, CrossEntropy(), HeadSettings(l2=l2, cross_fit=None), 0)
    whole = fit.head(*fit.solve())
    problem = fit._convex
    assert problem is not None
    x = torch.cat([problem.white, torch.ones(len(labels), 1, dtype=torch.float64)], 1)
    n, size = x.shape
    p = (x @ problem.start.T).softmax(1)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = torch.einsum("ni,nj,ncd->cidj", x, x, s).reshape(classes * size, -1) / n
    penalty = torch.cat([problem.l2 * problem.scale**2, torch.full((1,), 1e-9, dtype=torch.float64)])
    inverse = torch.linalg.inv(hessian + torch.diag(penalty.repeat(classes))).reshape(classes, size, classes, size)
    heads = []
    for row, image in enumerate(x):
        solved = torch.einsum("cidj,j->cid", inverse, image) / n
        influence = torch.einsum("cid,i->cd", solved, image)
        residual = p[row].clone()
        residual[labels[row]] -= 1
        step = torch.linalg.solve(torch.eye(classes, dtype=torch.float64) - s[row] @ influence, residual)
        moved = problem.start + (solved @ step)
        weight = moved[:, :-1] @ problem.whiten.T
        heads.append(Head(weight, moved[:, -1] - weight @ problem.mean, whole.score, whole.nll, whole.loss))
    logits = torch.stack([head.logits(z) for head, z in zip(heads, features, strict=True)])
    loss = whole.loss
    score, nll = loss.score(logits, labels), loss.nll(logits, labels)
    return CrossFitHead(whole, tuple(heads), torch.arange(n), loss, score, nll, 0)


if __name__ == "__main__":
    main()
