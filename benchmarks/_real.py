"""Real tasks and weights from a folder the user names (see README.md)."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from task2vec_ext import Probe, Task, as_task, load_probe


@dataclass(frozen=True)
class RealTask:
    """One task of ``tasks.json``."""

    domain: str
    task: Task


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that both benchmarks of real data share."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--data", type=Path, required=True, help="folder with tasks.json and weights/")
    arguments.add_argument("--probe", default="resnet18")
    arguments.add_argument("--image-size", type=int, default=112)
    return arguments


def probe(options: argparse.Namespace) -> Probe:
    """Return the probe the options name, with the folder's own weights."""
    weights = options.data / "weights" / f"{options.probe}.safetensors"
    return load_probe(options.probe, weights=weights, image_size=options.image_size)


def real_tasks(folder: Path, per_domain: int | None = None, only: list[str] | None = None) -> list[RealTask]:
    """Return the tasks of a folder: at most so many of each domain, spread evenly over its list."""
    by_domain = defaultdict(list)
    for entry in json.loads((folder / "tasks.json").read_text()):
        if only is None or entry["name"] in only:
            by_domain[entry["domain"]].append(entry)
    chosen = []
    for domain, entries in by_domain.items():
        count = min(per_domain or len(entries), len(entries))
        for i in range(count):
            entry = entries[i * len(entries) // count]
            pairs = [(folder / file, label) for label, files in enumerate(entry["classes"].values()) for file in files]
            chosen.append(RealTask(domain, as_task(pairs, name=entry["name"])))
    return chosen
