r"""Which selector finds the best expert? Trains experts, measures every expert's error on every task, scores selectors.

    python benchmarks/model_selection.py --data DIR --work DIR
    python benchmarks/model_selection.py --spec inat2018:DIR --spec cub:DIR --work DIR --probe resnet34 \
        --image-size 224 --recipe paper --experts-per-domain 25 --tasks-per-domain 25      # the paper's 50 × 50

The work folder keeps everything: an interrupted run resumes there. Experts and tasks are the largest of every domain.
All images are parted once, by a hash of their names: half for training (experts, classifiers, embeddings), half for
testing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import get_args
from urllib.parse import quote

import torch
from _record import results_folder, write_record
from _selection import facts, print_table, reasons, reliability, score
from _tasks import MetaTask, domains, largest, num_samples, part, real_tasks

from task2vec_ext import Embedding, Probe, fisher_embed, load_probe
from task2vec_ext.data import tasks_from
from task2vec_ext.experts import IMAGENET, ErrorMatrix, Expert, train_expert, transfer_errors
from task2vec_ext.experts.features import ExpertFeatures, Extractor
from task2vec_ext.experts.recipe import RECIPES
from task2vec_ext.selection import SELECTORS
from task2vec_ext.words import RecipeName

Outputs = Callable[[str, str], ExpertFeatures]


def main() -> None:
    """Train, measure, score, write."""
    options = arguments().parse_args()
    tasks = meta_tasks(options)
    probe = load_probe(options.probe, weights=weights(options), image_size=options.image_size)
    chosen = largest(tasks, options.experts_per_domain)
    targets = largest(tasks, options.tasks_per_domain, options.fewest)
    print(f"{len(chosen)} experts of {domains(chosen)}; {len(targets)} tasks of {domains(targets)}", flush=True)
    experts = train(chosen, probe, options)
    by_name = {task.name: task for task in (*chosen, *targets)}
    embeddings = embed(list(by_name.values()), probe, options)
    errors = transfer(experts, targets, probe, options)
    extractor = Extractor(
        {IMAGENET: probe, **{expert.name: expert for expert in experts}},
        dtype=getattr(torch, options.dtype),
        num_workers=options.num_workers,
        cache=options.work / "features",
        progress=False,
    )
    known = facts(
        list(by_name),
        {name: len(task.train) for name, task in by_name.items()},
        embeddings,
        outputs(extractor, by_name, options),
    )
    scored = score(errors, known, options.by or tuple(SELECTORS))
    for table in (scored.first, scored.second):
        print_table(table)
    why = reasons(
        errors,
        known,
        {name: task.domain for name, task in by_name.items()},
        {task.name: min(len(task.test), num_samples(task.test, options.test_samples)) for task in targets},
        scored.second,
    )
    why["reliability"] = reliabilities(extractor, targets, options)
    for key, value in why.items():
        print(f"{key:>30}: {value}")
    errors.write_csv(results_folder() / f"{options.name}_errors.csv")
    result = {
        "domains": domains(targets),
        "samples": {key: value for key, value in vars(options).items() if key.endswith("_samples")},
        "chosen": scored.chosen,
        "first_half": scored.first.to_json(),
        "reasons": why,
        "second_half": scored.second.to_json(),
    }
    print(write_record(options.name, result))


def arguments() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder with tasks.json and weights/ (benchmarks/README.md)")
    source.add_argument("--spec", action="append", help="tasks as for task2vec embed: inat2018:DIR; may be repeated")
    parser.add_argument("--work", type=Path, required=True, help="folder for experts, embeddings, features and errors")
    parser.add_argument("--probe", default="resnet18")
    parser.add_argument("--weights", help="of the probe; default: the data folder's own, else ImageNet")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--recipe", choices=get_args(RecipeName), default="quick")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--experts-per-domain", type=int, default=3)
    parser.add_argument("--tasks-per-domain", type=int, default=5)
    parser.add_argument("--fewest", type=int, default=85, help="training images of a target task")
    parser.add_argument("--expert-samples", type=int, default=300, help="images an expert is trained on, at most")
    parser.add_argument("--embedding-samples", type=int, default=200, help="images of a task's embedding, at most")
    parser.add_argument("--train-samples", type=int, default=120, help="images a classifier is fitted to, at most")
    parser.add_argument("--test-samples", type=int, default=160, help="images an error is measured on, at most")
    parser.add_argument("--dtype", default="float32", help="of forward passes but the embeddings': bfloat16 is faster")
    parser.add_argument("--by", nargs="+", choices=SELECTORS, help="selectors to report; default: all")
    parser.add_argument("--name", default="model_selection", help="of the results' files")
    parser.add_argument("--num-workers", type=int, default=0)
    return parser


def meta_tasks(options: argparse.Namespace) -> list[MetaTask]:
    """Return all tasks of the data, parted."""
    return [part(task) for task in (real_tasks(options.data) if options.data else tasks_from(*options.spec))]


def weights(options: argparse.Namespace) -> str | Path | None:
    """Return where the probe's weights are from."""
    if options.weights is not None or options.data is None:
        return options.weights
    return options.data / "weights" / f"{options.probe}.safetensors"


def train(tasks: list[MetaTask], probe: Probe, options: argparse.Namespace) -> list[Expert]:
    """Return an expert of every task, trained unless it is there."""
    recipe = RECIPES[options.recipe]
    if options.epochs is not None:
        recipe = replace(recipe, epochs=options.epochs)
    experts = []
    for task in tasks:
        started = time.perf_counter()
        expert = train_expert(
            task.train,
            options.work / "experts",
            probe,
            recipe=recipe,
            num_samples=num_samples(task.train, options.expert_samples),
            dtype=getattr(torch, options.dtype),
            num_workers=options.num_workers,
        )
        metrics = {key: round(value, 3) for key, value in expert.card.metrics.items()}
        print(f"{task.name}: {metrics}, {time.perf_counter() - started:.0f} s", flush=True)
        experts.append(expert)
    return experts


def embed(tasks: list[MetaTask], probe: Probe, options: argparse.Namespace) -> dict[str, Embedding]:
    """Return the embedding of every task's training images, by name."""
    folder = options.work / "embeddings"
    folder.mkdir(exist_ok=True)
    found = {}
    for task in tasks:
        file = folder / f"{quote(task.name, safe='')}.safetensors"
        if not file.exists():
            samples = num_samples(task.train, options.embedding_samples)
            fisher_embed(task.train, probe, num_samples=samples, num_workers=options.num_workers).save(file)
            print(f"{task.name}: embedded", flush=True)
        found[task.name] = Embedding.load(file)
    return found


def transfer(experts: list[Expert], tasks: list[MetaTask], probe: Probe, options: argparse.Namespace) -> ErrorMatrix:
    """Return the test error of a linear classifier on every expert's features, and on the probe's, for every task."""
    rows = {IMAGENET: probe, **{expert.name: expert for expert in experts}}
    for done, task in enumerate(tasks, 1):
        started = time.perf_counter()
        transfer_errors(
            rows,
            [(task.train, task.test)],
            options.work / "errors.csv",
            num_samples=num_samples(task.train, options.train_samples),
            num_test=num_samples(task.test, options.test_samples),
            dtype=getattr(torch, options.dtype),
            num_workers=options.num_workers,
            cache=options.work / "features",
        )
        print(f"{done} of {len(tasks)}: {task.name}, {time.perf_counter() - started:.0f} s", flush=True)
    return ErrorMatrix.read_csv(options.work / "errors.csv")


def outputs(extractor: Extractor, tasks: dict[str, MetaTask], options: argparse.Namespace) -> Outputs:
    """Return what gives (task, expert) → features: of the images that classifiers were fitted to, no others."""

    def of(task: str, expert: str) -> ExpertFeatures:
        images = tasks[task].train
        return extractor(images, num_samples=num_samples(images, options.train_samples), only=[expert])[expert]

    return of


def reliabilities(extractor: Extractor, tasks: list[MetaTask], options: argparse.Namespace) -> dict[str, float]:
    """Return how reliable errors on so few test images are: means over the tasks."""
    found = []
    for task in tasks:
        train = extractor(task.train, num_samples=num_samples(task.train, options.train_samples))
        test = extractor(task.test, num_samples=num_samples(task.test, options.test_samples))
        found.append(reliability(train, test, task.name))
    agree, over = (mean(values) for values in zip(*found, strict=True))
    # Spearman and Brown: of twice as many images.
    whole = 2 * agree / (1 + agree)
    return {"halves_correlate": agree, "reliability": whole, "best_of_one_half_on_the_other": over}


if __name__ == "__main__":
    main()
