"""How near does the variational Fisher come to the per-sample one, on a real task, and after how many epochs?

    python benchmarks/robust_fisher.py --data DIR [--task cub_order_charadriiformes] [--num-samples 75 300] [--epochs 6]

Rank correlation (Spearman) over filters, per layer and over all, of the variational F after each epoch with the
per-sample F of the same images and head (signed, mean of 4 seeds); and d_sym between the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import _tasks
import torch
from _image_fisher import read, split
from _measure import print_table, say
from _record import write_record
from scipy.stats import spearmanr
from torch import Tensor

from task2vec_ext import Probe, Task, cross_distances
from task2vec_ext.data import Batch, draw, read_labels
from task2vec_ext.fisher import fit_head, sum_fisher
from task2vec_ext.fisher.variational import VariationalSettings, variational_epochs
from task2vec_ext.probe.folding import fold

SEEDS, BATCH = 4, 32


def main() -> None:
    """Fit once per number of images and kind of noise, compare after every epoch, print, write."""
    parser = _tasks.parser(__doc__)
    parser.add_argument("--task", default="cub_order_charadriiformes")
    parser.add_argument("--num-samples", type=int, nargs="+", default=[75, 300])
    parser.add_argument("--noise", nargs="+", default=["activations", "weights"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--epoch-samples", type=int, default=10_000)
    parser.add_argument("--beta", type=float, help="of the paper's objective; default: 2e-7·N")
    parser.set_defaults(image_size=64)
    options = parser.parse_args()

    (task,) = _tasks.real_tasks(options.data, only=[options.task])
    probe = _tasks.probe(options)
    result = {name: getattr(options, name) for name in ("task", "probe", "image_size", "epoch_samples", "beta")}
    rows: list[dict[str, Any]] = []
    for noise in options.noise:
        settings = VariationalSettings(
            noise=noise, beta=options.beta, epochs=options.epochs, epoch_samples=options.epoch_samples
        )
        for count in options.num_samples:
            rows += compare(probe, task, count, settings)
            path = write_record("robust_fisher", {**result, "batch_size": BATCH, "rows": rows})
    print(path)


def compare(probe: Probe, task: Task, count: int, settings: VariationalSettings) -> list[dict[str, Any]]:
    """Return a row for each epoch."""
    images = read(task, probe, draw(read_labels(task), count, seed=0))
    images = images._replace(index=torch.arange(len(images.index)))
    layers = probe.layers()
    faster = fold(probe, layers, images.images[:1])
    with torch.no_grad():
        features = torch.cat([faster.features(batch.images) for batch in split(images)])
    head = fit_head(features, images.labels, int(images.labels.max()) + 1)
    seeds = [sum_fisher(faster, layers, head, split(images), "signed", seed).mean for seed in range(SEEDS)]
    expected = torch.stack(seeds).mean(0)

    def epochs() -> Iterator[Iterator[Batch]]:
        for chosen in settings.epochs_of(images.labels, seed=0):
            yield (Batch(*(part[rows] for part in images)) for rows in chosen.split(BATCH))

    rows = []
    for epoch, robust in enumerate(variational_epochs(faster, layers, head, epochs(), count, settings), 1):
        say(f"{settings.noise}, {count} images: epoch {epoch} of {settings.epochs}")
        by_layer = [_spearman(robust.fisher, expected, slice(each.start, each.stop)) for each in layers]
        rows.append(
            {
                "noise": settings.noise,
                "images": count,
                "head_nll": head.nll,
                "epoch": epoch,
                "nll_under_noise": robust.nll[-1],
                "spearman_all": _spearman(robust.fisher, expected, slice(None)),
                "spearman_median": median(by_layer),
                "spearman_by_layer": dict(zip([each.name for each in layers], by_layer, strict=True)),
                "norm_ratio": float(robust.fisher.sum() / expected.sum()),
                "zeros": int((robust.fisher == 0).sum()),
                "d_sym": float(cross_distances(robust.fisher[None], expected[None])[0, 0]),
            }
        )
    names = ("epoch", "spearman_all", "spearman_median", "norm_ratio", "zeros", "d_sym", "nll_under_noise")
    print_table(
        f"{task.name}: {count} images, noise on {settings.noise}, head {head.nll:.3f} nats",
        names,
        [[row[name] for name in names] for row in rows],
    )
    return rows


def _spearman(a: Tensor, b: Tensor, part: slice) -> float:
    return float(spearmanr(a[part].numpy(), b[part].numpy()).statistic)


if __name__ == "__main__":
    main()
