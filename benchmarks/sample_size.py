"""How many images does an embedding need? Its relative error against images used, by estimator and confidence.

    python benchmarks/sample_size.py --data DIR [--tasks NAME …] [--l2 1e-1 1e-3]

The head is fitted to the full task and held fixed; the truth is the exact Fisher of the full task. ``exact``,
``signed`` and ``sampled`` are means of per-image rows, computed once, over N images drawn with replacement.
``batch_mean`` is the authors' released estimator: the squared gradient of the mean loss of 64 images with sampled
labels, times 64, averaged over N/64 batches, no batch used twice. A large ``--l2`` makes a soft head, a small one a
confident head. Also draws docs/how_many_images.png.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import get_args

import _tasks
import torch
from _image_fisher import image_fisher, read
from _record import write_record
from rich.progress import track
from torch import Tensor

from task2vec_ext import Probe, distance_matrix
from task2vec_ext.data import Batch
from task2vec_ext.fisher import Head
from task2vec_ext.kernels.reference import authors_monte_carlo
from task2vec_ext.losses import CrossEntropy
from task2vec_ext.plot import save_figure
from task2vec_ext.words import Estimator

ESTIMATORS: tuple[Estimator, ...] = tuple(e for e in get_args(Estimator) if e in {"exact", "signed", "sampled"})
BATCH = 64
"""Images in a batch of the authors' released code."""


def main() -> None:
    """Measure, write, draw."""
    parser = _tasks.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=["cifar10_vehicles", "taxa_liliopsida_orders"])
    parser.add_argument("--l2", type=float, nargs="+", default=[1e-1, 1e-3], help="L2 of the head, soft to confident")
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--batches", type=int, default=48, help="of the authors' estimator")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs" / "how_many_images.png")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "task2vec-rows", help="folder that keeps the rows"
    )
    options = parser.parse_args()

    net, found = _tasks.probe(options), []
    result = {"probe": options.probe, "image_size": options.image_size, "draws": options.draws, "rows": found}
    random = torch.Generator().manual_seed(0)
    for task in _tasks.real_tasks(options.data, only=options.tasks):
        images = read(task, net)
        for l2 in options.l2:
            rows = {e: image_fisher(task, net, estimator=e, l2=l2, cache=options.cache) for e in ESTIMATORS}
            head, truth = rows["exact"].head, rows["exact"].fisher.double().mean(0)
            squares = _batch_means(net, images, head, options.batches, random)
            for name in (*ESTIMATORS, "batch_mean"):
                curve = []
                for samples in options.samples:
                    if name == "batch_mean":
                        count = samples // BATCH
                        means = [part.double().mean(0) for part in squares.split(count) if len(part) == count]
                    else:
                        pool = rows[name].fisher
                        draws = torch.randint(len(pool), (options.draws, samples), generator=random)
                        means = [pool[draw].double().mean(0) for draw in draws]
                    errors = [float((mean - truth).norm() / truth.norm()) for mean in means]
                    apart = [float(distance_matrix(torch.stack([mean, truth]))[0, 1]) for mean in means]
                    curve.append({"images": samples, "relative_error": median(errors), "d_sym": median(apart)})
                found.append({"task": task.name, "l2": l2, "head_nll": head.nll, "estimator": name, "curve": curve})
                print(task.name, l2, f"NLL {head.nll:.3f}", name, [round(c["relative_error"], 3) for c in curve])
                path = write_record(f"sample_size_{options.probe}", result)
    print(path)
    _draw(found, options.probe, options.figure)


def _batch_means(probe: Probe, all_images: Batch, head: Head, count: int, random: torch.Generator) -> Tensor:
    """Return 64 times the squared gradient of the mean loss of random batches with sampled labels: ``[count, K]``."""
    network = torch.nn.Module()
    network.forward = lambda images: head.logits(probe.features(images))  # type: ignore[method-assign]  # one function, not worth a class
    weights = [probe.weight(layer.name) for layer in probe.layers()]
    kept = []
    for number in track(range(count), "batch means"):
        drawn = torch.randint(len(all_images.labels), (BATCH,), generator=random)
        images = all_images.images[drawn]
        with torch.no_grad():
            # Numbered by batch and place: an image that is drawn twice gets two labels.
            labels = CrossEntropy().sample(
                network(images), all_images.labels[drawn], torch.arange(BATCH) + number * BATCH, seed=0
            )
        kept.append(torch.cat(authors_monte_carlo(network, images, labels, weights, BATCH)) * BATCH)
    return torch.stack(kept)


def _draw(found: list[dict], probe: str, path: Path) -> None:
    """Draw a panel for each head, with a line for each estimator and task."""
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(row["task"] for row in found))
    penalties = sorted({row["l2"] for row in found}, reverse=True)
    figure, axes = pyplot.subplots(1, len(penalties), figsize=(4.5 * len(penalties), 3.6), sharey=True, squeeze=False)
    colours = dict(zip([*ESTIMATORS, "batch_mean"], ("black", "tab:blue", "tab:orange", "tab:red"), strict=True))
    for ax, l2 in zip(axes[0], penalties, strict=True):
        for row in (row for row in found if row["l2"] == l2):
            first = row["task"] == tasks[0]
            x, y = zip(*((c["images"], c["relative_error"]) for c in row["curve"]), strict=True)
            style = {"color": colours[row["estimator"]], "linestyle": ("-", "--", ":")[tasks.index(row["task"]) % 3]}
            ax.loglog(x, y, marker=".", label=row["estimator"].replace("_", " ") if first else None, **style)
        nll = ", ".join(f"{row['head_nll']:.2f}" for row in found if row["l2"] == l2 and row["estimator"] == "exact")
        ax.set(title=f"head NLL {nll}", xlabel="images")
        ax.grid(alpha=0.3, which="both")
    axes[0, 0].set_ylabel("relative error of the embedding")
    axes[0, -1].legend(fontsize=8)
    figure.suptitle(f"{probe}: {', '.join(tasks)} (solid, dashed)", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(axes[0, 0], path)


if __name__ == "__main__":
    main()
