"""How far are the one-pass estimators from the exact Fisher, on a real task with a confident head?

python benchmarks/estimators.py --data DIR [--task cub_order_charadriiformes] [--seeds 5]
"""

from __future__ import annotations

from statistics import median

import _tasks
from _record import write_record
from rich.progress import track

from task2vec_ext import cross_distances, fisher_embed
from task2vec_ext.data import draw, read_labels, subset
from task2vec_ext.fisher import HeadSettings
from task2vec_ext.settings import EmbedSettings


def main() -> None:
    """Embed once with ``exact``, with the others at several seeds, and compare."""
    parser = _tasks.parser(__doc__)
    parser.add_argument("--task", default="cub_order_charadriiformes")
    parser.add_argument("--num-samples", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--l2", type=float, nargs="+", default=[1e-2], help="L2 of the head: smaller, more confident")
    options = parser.parse_args()

    (task,) = _tasks.real_tasks(options.data, only=[options.task])
    # One draw of images, whose head has no randomness: the seed varies the estimator's noise alone.
    images = subset(task, draw(read_labels(task), options.num_samples, seed=0))
    net = _tasks.probe(options)
    result = {name: getattr(options, name) for name in ("task", "probe", "image_size", "seeds")}
    rows: list[dict] = []
    for l2 in options.l2:
        settings = EmbedSettings(head=HeadSettings(l2=l2, cross_fit=None))
        exact = fisher_embed(images, net, settings=settings, estimator="exact", progress=False)
        for estimator in ("signed", "sampled"):
            errors, distances = [], []
            for seed in track(range(options.seeds), f"l2 {l2:g}, {estimator}"):
                other = fisher_embed(images, net, settings=settings, estimator=estimator, seed=seed, progress=False)
                errors.append(float((other.fisher - exact.fisher).norm() / exact.fisher.norm()))
                distances.append(float(cross_distances([exact], [other])[0, 0]))
            rows.append(
                {
                    "l2": l2,
                    "head_nll": exact.head.nll,
                    "head_accuracy": exact.head.score,
                    "estimator": estimator,
                    "relative_error": {"median": median(errors), "min": min(errors), "max": max(errors)},
                    "d_sym_to_exact": {"median": median(distances), "min": min(distances), "max": max(distances)},
                }
            )
            print(rows[-1])
            path = write_record("estimators", {**result, "images": exact.num_samples, "rows": rows})
    print(path)


if __name__ == "__main__":
    main()
