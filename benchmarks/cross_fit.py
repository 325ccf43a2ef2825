"""Does the Fisher of a few images describe the task? One head of all images against a head for each fold.

    python benchmarks/cross_fit.py --data DIR [--tasks NAME …] [--draws 20] [--protocols in_sample cross_fit_5 …]

Draws of N images of real tasks, each with heads of its own, against the same protocol on 800 images:

- ``in_sample``: one head, fitted to all images (the paper's protocol);
- ``cross_fit_K``: K folds, the head of an image fitted to the other folds (`HeadSettings.cross_fit`);
- ``newton``: one head, and for each image a Newton step to the head without this image (its closed-form influence).

Draws are without replacement, of tasks of 900 images and more. Rows are kept in ``--cache``, and the figures made from
whatever is there. Also draws docs/cross_fit.png.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from statistics import median

import _image_fisher
import _tasks
import torch
from _record import write_record
from torch import Tensor

from task2vec_ext import Probe
from task2vec_ext.data import Batch
from task2vec_ext.fisher import CrossFitHead, Head, HeadSettings, fit_cross_fit_head, fit_head, per_sample_fisher
from task2vec_ext.fisher.head import HeadFit
from task2vec_ext.jackknife import Groups, estimate, group_sizes, num_groups, side
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
    parser.add_argument("--protocols", nargs="+", default=["cross_fit_5", "in_sample"])
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--draws", type=int, default=20, help="of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the reference of 800 images")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "task2vec-draws", help="folder that keeps the draws"
    )
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs" / "cross_fit.png")
    options = parser.parse_args()

    options.cache.mkdir(parents=True, exist_ok=True)
    net = _tasks.probe(options)
    for task in _tasks.real_tasks(options.data, only=options.tasks):
        population = Population(task.name, net, options.cache, _image_fisher.read(task, net))
        for protocol in options.protocols:
            if protocol != "newton":  # whose Hessian has (C·D)² numbers there
                population.embed(protocol, FULL, 0)
            for samples, draw in itertools.product(options.samples, range(options.draws)):
                population.embed(protocol, samples, draw)
    pass


class Population:
    """A task's images, their features, and the embeddings of draws of them."""

    def __init__(self, name: str, probe: Probe, cache: Path, images: Batch) -> None:
        """Compute the features of all images."""
        self.name, self.cache, self.images = name, cache, images
        self.layers = probe.layers()
        self.probe = fold(probe, self.layers, images.images[:1])
        with torch.no_grad():
            self.features = torch.cat([self.probe.features(part.images) for part in _image_fisher.split(images)])

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
        count = num_groups(len(fisher))
        groups = torch.stack([fisher[g::count].mean(0) for g in range(count)]).float()
        held_out = isinstance(heads, CrossFitHead)
        figures = {"mean": fisher.mean(0), "groups": groups, "samples": samples}
        figures |= {"nll": heads.nll if held_out else None, "score": heads.score if held_out else None}
        torch.save(figures, path)
        print(f"{path.stem}: norm {float(fisher.mean(0).sum()):.4g}", flush=True)


def heads_of(protocol: str, features: Tensor, labels: Tensor) -> Head | CrossFitHead:
    """Return the head of every image, by protocol."""
    classes, loss = int(labels.max()) + 1, CrossEntropy()
    name, _, penalty = protocol.partition("_l2_")
    l2 = float(penalty) if penalty else None
    if name == "in_sample":
        return fit_head(features, labels, classes, l2=l2)
    if name == "newton":
        return newton_heads(features, labels, classes)
    settings = HeadSettings(cross_fit=int(name.removeprefix("cross_fit_")), l2=l2)
    return fit_cross_fit_head(features, labels, classes, torch.arange(len(labels)), loss, settings, 0)


def newton_heads(features: Tensor, labels: Tensor, classes: int) -> CrossFitHead:
    """Return, for each image, the head of all images after one Newton step on the objective without this image.

    With x the whitened features and a 1, r = p − e_y and S = diag(p) − ppᵀ of the image, and H the Hessian:
    ``H₋ₙ⁻¹(x ⊗ r)/N = H⁻¹(x ⊗ (I − S·A)⁻¹r)/N`` with ``A = (xᵀ ⊗ I)H⁻¹(x ⊗ I)/N``.
    """
    fit = HeadFit(features, labels, classes, CrossEntropy(), HeadSettings(cross_fit=None), 0)
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
