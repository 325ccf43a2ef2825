"""Does a task's nearest neighbour come from its own domain? Embeds real tasks and plots their clustered distances.

    python benchmarks/real_tasks.py --data DIR [--per-domain 6] [--num-samples 160]

Domains of a single task are left out: that task has no neighbour to find. Tasks of one domain may share images.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import _tasks
from _record import results_folder, write_record
from rich.progress import track

from task2vec_ext import Embedding, distance_matrix, fisher_embed
from task2vec_ext.fisher import HeadSettings
from task2vec_ext.plot import plot_matrix, save_figure
from task2vec_ext.settings import EmbedSettings


def main() -> None:
    """Embed, compare, write."""
    parser = _tasks.parser(__doc__)
    parser.add_argument("--per-domain", type=int, default=6, help="tasks of each domain at most")
    parser.add_argument("--num-samples", type=int, default=160, help="images of each task at most")
    parser.add_argument("--l2", type=float, help="L2 penalty of the head")
    parser.add_argument("--cross-fit", type=int, default=HeadSettings().cross_fit, help="folds of the head; 0: none")
    parser.add_argument("--estimator", default="signed")
    parser.add_argument("--keep", type=Path, help="folder that keeps the embeddings, so that a second run resumes")
    options = parser.parse_args()

    tasks = _tasks.real_tasks(options.data, options.per_domain)
    sizes = Counter(map(_tasks.domain, tasks))
    tasks = [task for task in tasks if sizes[_tasks.domain(task)] > 1]
    domains = [_tasks.domain(task) for task in tasks]
    net = _tasks.probe(options)
    settings = EmbedSettings(
        estimator=options.estimator, head=HeadSettings(l2=options.l2, cross_fit=options.cross_fit or None)
    )
    started = time.perf_counter()
    embeddings = []
    for task in track(tasks, "embedding"):
        file = options.keep / f"{quote(task.name, safe='')}.safetensors" if options.keep else None
        if file and file.exists():
            embeddings.append(Embedding.load(file))
            continue
        count = _tasks.num_samples(task, options.num_samples)
        embedding = fisher_embed(task, net, settings=settings, num_samples=count, progress=False)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            embedding.save(file)
        embeddings.append(embedding)
    seconds = time.perf_counter() - started

    names = [embedding.name for embedding in embeddings]
    result: dict = {
        "probe": options.probe,
        "image_size": options.image_size,
        "tasks": len(tasks),
        "domains": len(set(domains)),
        "images": sum(embedding.num_samples for embedding in embeddings),
        "l2": options.l2,
        "cross_fit": options.cross_fit,
        "seconds": seconds,
        "head_nll_median": sorted(embedding.head.best_nll for embedding in embeddings)[len(embeddings) // 2],
        "norm_range": [min(e.norm for e in embeddings), max(e.norm for e in embeddings)],
        # Guessing at random among the other tasks.
        "chance": sum((domains.count(d) - 1) / (len(domains) - 1) for d in domains) / len(domains),
        "own_domain": {},
    }
    for distance in ("sym", "sym_scaled", "cosine", "jsd", "correlation"):
        distances = distance_matrix(embeddings, distance)
        nearest = distances.clone().fill_diagonal_(float("inf")).argmin(0).tolist()
        misses = [f"{names[i]} → {names[j]}" for i, j in enumerate(nearest) if domains[i] != domains[j]]
        result["own_domain"][distance] = 1 - len(misses) / len(tasks)
        if distance == "sym_scaled":
            result["misses"] = misses
            axes = plot_matrix(
                distances.fill_diagonal_(0),
                names,
                groups=domains,
                title="Distance between real tasks (d_sym, unit mean)",
            )
            save_figure(axes, results_folder() / "real_tasks.png")
    for key, value in result.items():
        print(f"{key:>16}: {value}")
    print(write_record("real_tasks", result))


if __name__ == "__main__":
    main()
