"""Does the norm say how hard a task is, whatever its number of images? Rank correlation with the held-out error.

    python benchmarks/norm_and_error.py --data DIR [--per-domain 6] [--fewest 50] [--most 800]

Each task has a number of images of its own, drawn between the two limits on a log scale. Its error is that of heads
fitted to four fifths of *all* its images, on the others: a property of the task, not of the draw. An interrupted run of
the same commit goes on where it stopped.
"""

from __future__ import annotations

import _image_fisher
import _tasks
import torch
from _record import read_result, write_record
from rich.progress import track

from task2vec_ext import Probe, Task, fisher_embed
from task2vec_ext.data import read_labels
from task2vec_ext.fisher import HeadSettings, fit_cross_fit_head
from task2vec_ext.losses import CrossEntropy
from task2vec_ext.settings import EmbedSettings

PROTOCOLS = {
    "cross-fitted": HeadSettings(),
    "in-sample, version 0.2": HeadSettings(l2=1e-2, cross_fit=None),
}


def main() -> None:
    """Embed, rank, write."""
    parser = _tasks.parser(__doc__)
    parser.set_defaults(image_size=96)
    parser.add_argument("--per-domain", type=int, default=6, help="tasks of each domain at most")
    parser.add_argument("--fewest", type=int, default=50)
    parser.add_argument("--most", type=int, default=800)
    options = parser.parse_args()

    tasks, net = _tasks.real_tasks(options.data, options.per_domain), _tasks.probe(options)
    shares = torch.rand(len(tasks), generator=torch.Generator().manual_seed(0)).tolist()
    before = {(row["task"], row["images"]): row for row in read_result("norm_and_error").get("rows", [])}
    rows: list[dict] = []
    for task, share in track(list(zip(tasks, shares, strict=True)), "tasks"):
        wanted = round(options.fewest * (options.most / options.fewest) ** share)
        images = _tasks.num_samples(task, min(wanted, len(task)))
        rows.append(before.get((task.name, images)) or measured(task, net, images))
        result = {
            "probe": options.probe,
            "image_size": options.image_size,
            "rows": rows,
            "spearman": correlations(rows),
        }
        path = write_record("norm_and_error", result)
    print(result["spearman"], path, sep="\n")


def measured(task: Task, net: Probe, images: int) -> dict:
    """Return a task's row."""
    row = {
        "task": task.name,
        "domain": _tasks.domain(task),
        "images": images,
        "error": held_out_error(task, net),
    }
    for name, head in PROTOCOLS.items():
        settings = EmbedSettings(head=head, num_samples=images)
        row[name] = fisher_embed(task, net, settings=settings, progress=False).norm
    return row


def held_out_error(task: Task, net: Probe) -> float:
    """Return the share of a task's images that a head which has not seen them labels wrong."""
    with torch.no_grad():
        features = torch.cat([net.features(part.images) for part in _image_fisher.split(_image_fisher.read(task, net))])
    labels = read_labels(task)
    count = int(labels.max()) + 1
    heads = fit_cross_fit_head(features, labels, count, torch.arange(len(labels)), CrossEntropy(), HeadSettings(), 0)
    return 1 - heads.score


def correlations(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Return Spearman's correlations of each protocol's norm, and of the number of images.

    ``error``: with the error. ``error, within domains``: of domains of four tasks or more, weighted by their tasks.
    ``images``: with the number of images, which neither norm nor error should know.
    """
    from scipy.stats import spearmanr

    def of(some: list[dict], a: str, b: str) -> float:
        return float(spearmanr([row[a] for row in some], [row[b] for row in some]).statistic)

    domains: dict[str, list[dict]] = {}
    for row in rows:
        domains.setdefault(row["domain"], []).append(row)
    large = [some for some in domains.values() if len(some) >= 4]
    if not large:
        return {}
    return {
        name: {
            "error": of(rows, name, "error"),
            "error, within domains": sum(len(some) * of(some, name, "error") for some in large) / sum(map(len, large)),
            "images": of(rows, name, "images"),
        }
        for name in (*PROTOCOLS, "images")
    }


if __name__ == "__main__":
    main()
