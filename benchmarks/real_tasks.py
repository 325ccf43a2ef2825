"""Does a task's nearest neighbour come from its own domain? Embeds real tasks, writes figures and the clustered matrix.

    python -m benchmarks.real_tasks --data DIR [--per-domain 6] [--num-samples 160]

Domains of one task are left out of the figure (they have no neighbour to find). Tasks of one domain may share images.
"""

from __future__ import annotations

import time

from rich.progress import track

from benchmarks import _real
from benchmarks._record import RESULTS, hardware, write_result
from task2vec_ext import Embedding, distance_matrix, fisher_embed
from task2vec_ext._util.tables import nearest, safe_name
from task2vec_ext.fisher.head import DEFAULT_L2
from task2vec_ext.plot import plot_matrix, save_figure


def main() -> None:
    """Embed, compare, write."""
    parser = _real.parser(__doc__ or "")
    parser.add_argument("--per-domain", type=int, default=6, help="tasks of each domain at most")
    parser.add_argument("--num-samples", type=int, default=160, help="images of each task at most")
    parser.add_argument("--l2", type=float, default=DEFAULT_L2["lbfgs"], help="L2 penalty of the head")
    parser.add_argument("--estimator", default="signed")
    parser.add_argument(
        "--keep", type=_real.Path, help="folder that keeps the embeddings, so that a second run resumes"
    )
    options = parser.parse_args()

    tasks = [task for task in _real.real_tasks(options.data, options.per_domain) if task.task.name]
    domains = [task.domain for task in tasks]
    tasks = [task for task in tasks if domains.count(task.domain) > 1]
    domains = [task.domain for task in tasks]
    net = _real.probe(options)
    started = time.perf_counter()
    embeddings = []
    for real in track(tasks, "embedding"):
        file = options.keep / f"{safe_name(real.task.name)}.safetensors" if options.keep else None
        if file and file.exists():
            embeddings.append(Embedding.load(file))
            continue
        # A few classes have fewer images than a proportional draw needs: at least two of each on average.
        count = max(options.num_samples, 2 * (int(real.task.labels.max()) + 1))
        embedding = fisher_embed(
            real.task, net, estimator=options.estimator, num_samples=count, head_l2=options.l2, progress=False
        )
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
        "seconds": seconds,
        "head_nll_median": sorted(embedding.head.nll for embedding in embeddings)[len(embeddings) // 2],
        "norm_range": [min(e.norm for e in embeddings), max(e.norm for e in embeddings)],
        # What guessing at random among the other tasks would give.
        "chance": sum((domains.count(d) - 1) / (len(domains) - 1) for d in domains) / len(domains),
        "own_domain": {},
    }
    for distance in ("sym", "sym_scaled", "cosine", "jsd", "correlation"):
        distances = distance_matrix(embeddings, distance)
        hits = [domains[i] == domains[j] for i, (j, _) in enumerate(nearest(distances))]
        result["own_domain"][distance] = sum(hits) / len(hits)
        if distance == "sym_scaled":
            result["misses"] = [
                f"{names[i]} → {names[j]}" for i, (j, _) in enumerate(nearest(distances)) if domains[i] != domains[j]
            ]
            axes = plot_matrix(distances, names, groups=domains, title="Distance between real tasks (d_sym, unit mean)")
            folder = RESULTS / hardware()
            folder.mkdir(parents=True, exist_ok=True)
            save_figure(axes, folder / "real_tasks.png")
    for key, value in result.items():
        print(f"{key:>16}: {value}")
    print(write_result("real_tasks", result))


if __name__ == "__main__":
    main()
