"""How far are the one-pass estimators from the exact Fisher, on a real task with a confident head?

python -m benchmarks.estimators --data DIR [--task cub_order_charadriiformes] [--seeds 5]
"""

from __future__ import annotations

from statistics import median

import torch
from rich.progress import track

from benchmarks import _real
from benchmarks._record import write_result
from task2vec_ext import cross_distances, fisher_embed
from task2vec_ext.fisher.head import DEFAULT_L2


def main() -> None:
    """Embed once with ``exact``, with the others at several seeds, and compare."""
    parser = _real.parser(__doc__ or "")
    parser.add_argument("--task", default="cub_order_charadriiformes")
    parser.add_argument("--num-samples", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--l2", type=float, nargs="+", default=[DEFAULT_L2["lbfgs"]], help="L2 of the head: smaller, more confident"
    )
    options = parser.parse_args()

    (real,) = _real.real_tasks(options.data, only=[options.task])
    net = _real.probe(options)
    rows = []
    for l2 in options.l2:
        # The draw of images and the head are those of seed 0 throughout: only the estimator's noise varies.
        images = torch.utils.data.Subset(real.task, _indices(real.task, options.num_samples))
        settings = {"head_l2": l2, "progress": False, "name": options.task}
        exact = fisher_embed(images, net, estimator="exact", **settings)
        for estimator in ("signed", "sampled"):
            errors, distances = [], []
            for seed in track(range(options.seeds), f"l2 {l2:g}, {estimator}"):
                other = fisher_embed(images, net, estimator=estimator, seed=seed, **settings)
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
    result = {
        "task": options.task,
        "images": exact.num_samples,
        "seeds": options.seeds,
        "image_size": options.image_size,
    }
    print(write_result("estimators", {**result, "probe": options.probe, "rows": rows}))


def _indices(task: _real.Task, count: int) -> list[int]:
    from task2vec_ext.data import draw

    return draw(task.labels, count, seed=0).tolist()


if __name__ == "__main__":
    main()
