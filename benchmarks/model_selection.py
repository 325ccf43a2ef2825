"""Which selector finds the best expert? Trains experts, measures every expert's error on every task, scores selectors.

    python -m benchmarks.model_selection --data DIR --work DIR
    python -m benchmarks.model_selection --spec "inat2018:DIR?split=train" cub:DIR --work DIR --probe resnet34 \\
        --image-size 224 --recipe paper --experts-per-domain 25 --tasks-per-domain 25      # the paper's 50 × 50

Everything lands in the work folder; killed and started again, it goes on. Experts and tasks are the largest of every
domain. All pictures are parted once, by a hash of their names: half to learn from (experts, classifiers, embeddings),
half to be tested on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import get_args

from benchmarks import _real
from benchmarks._meta_task import MetaTask, count, domains, largest, part
from task2vec_ext import Probe, load_probe
from task2vec_ext.data import tasks_from
from task2vec_ext.expert import Expert, train_expert
from task2vec_ext.finetune import RecipeName


def main() -> None:
    """Train, measure, score, write."""
    options = arguments().parse_args()
    started = time.perf_counter()
    tasks = meta_tasks(options)
    probe = load_probe(options.probe, weights=weights(options), image_size=options.image_size)
    chosen = largest(tasks, options.experts_per_domain)
    targets = largest(tasks, options.tasks_per_domain, options.fewest)
    print(f"{len(chosen)} experts of {domains(chosen)}; {len(targets)} tasks of {domains(targets)}", flush=True)
    train(chosen, probe, options)
    print(f"experts: {time.perf_counter() - started:.0f} s", flush=True)


def arguments() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder with tasks.json and weights/ (benchmarks/README.md)")
    source.add_argument("--spec", nargs="+", help="tasks as for task2vec embed: inat2018:DIR cub:DIR …")
    parser.add_argument("--work", type=Path, required=True, help="folder for experts, embeddings, features and errors")
    parser.add_argument("--probe", default="resnet18")
    parser.add_argument("--weights", help="of the probe; default: the data folder's own, else ImageNet")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--recipe", choices=get_args(RecipeName), default="quick")
    parser.add_argument("--experts-per-domain", type=int, default=3)
    parser.add_argument("--tasks-per-domain", type=int, default=5)
    parser.add_argument("--fewest", type=int, default=85, help="training pictures of a target task")
    parser.add_argument("--expert-samples", type=int, default=400, help="pictures an expert is trained on, at most")
    parser.add_argument("--num-workers", type=int, default=0)
    return parser


def meta_tasks(options: argparse.Namespace) -> list[MetaTask]:
    """Return all tasks of the data, parted."""
    if options.data is not None:
        return [part(real.domain, real.task) for real in _real.real_tasks(options.data)]
    return [part(str(task.metadata.get("domain", "")), task) for task in tasks_from(*options.spec)]


def weights(options: argparse.Namespace) -> str | Path | None:
    """Return where the probe's weights are from."""
    if options.weights is not None or options.data is None:
        return options.weights
    return options.data / "weights" / f"{options.probe}.safetensors"


def train(tasks: list[MetaTask], probe: Probe, options: argparse.Namespace) -> list[Expert]:
    """Return an expert of every task, trained unless it is there."""
    experts = []
    for task in tasks:
        started = time.perf_counter()
        expert = train_expert(
            task.train,
            options.work / "experts",
            probe,
            recipe=options.recipe,
            num_samples=count(task.train, options.expert_samples),
            num_workers=options.num_workers,
        )
        metrics = {key: round(value, 3) for key, value in expert.card.metrics.items()}
        print(f"{task.name}: {metrics}, {time.perf_counter() - started:.0f} s", flush=True)
        experts.append(expert)
    return experts


if __name__ == "__main__":
    main()
