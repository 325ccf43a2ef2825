"""Does the loader keep the device busy? An embedding of iNaturalist 2018 images from disk, and who waits for whom.

    python -m benchmarks.inaturalist --root DIR [--split train2018] [--where order=Passeriformes] [--num-samples 512]
    python -m benchmarks.inaturalist --synthetic 256      # a stand-in of the same layout: needs no data

DIR holds the data set as published: SPLIT.json (COCO style: images, annotations, categories), the images under the
names it gives (train_val2018/Aves/2761/….jpg) and, if --where needs more ranks than that file has, categories.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks._measure import parser, print_table, summary
from benchmarks._record import write_result
from benchmarks._stages import Stages, stages
from benchmarks._step import random_probe
from task2vec_ext import Preprocess, Probe, Task, as_task, fisher_embed
from task2vec_ext.data import batches, draw

LIMIT = 0.10
"""Share of the wall time that the device may wait for images."""


def main() -> None:
    """Read, check, time, print, write."""
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--root", type=Path, help="folder of the data set; with --synthetic where to write one")
    arguments.add_argument("--split", default="train2018")
    arguments.add_argument(
        "--where", metavar="RANK=NAME", help="only categories of which this holds: supercategory=Aves"
    )
    arguments.add_argument("--synthetic", type=int, metavar="N", help="first write a stand-in of N images")
    arguments.add_argument("--num-samples", type=int, default=256, help="images, drawn in proportion to the classes")
    arguments.add_argument("--arch", default="resnet34")
    arguments.add_argument("--batch-size", type=int, help="default: 32 on the CPU, 256 on a GPU")
    arguments.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 16), help="processes that decode")
    options = arguments.parse_args()
    if options.root is None and options.synthetic is None:
        arguments.error("expected --root DIR, or --synthetic N for a stand-in")
    options.batch_size = options.batch_size or (256 if options.device.startswith("cuda") else 32)
    with ExitStack() as stack:
        root = options.root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            if options.synthetic is not None:
                write_synthetic(root, options.synthetic, options.split)
            task = inaturalist_task(root, options.split, options.where)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        result = measure(task, options)
    report(result)
    print(write_result("inaturalist", result))


def inaturalist_task(root: Path, split: str, where: str | None = None) -> Task:
    """Return a split of iNaturalist 2018, or the part of it that one RANK=NAME names, as a task.

    Args:
        root: Folder that holds ``SPLIT.json`` and the images.
        split: ``train2018`` or ``val2018``.
        where: For instance ``supercategory=Aves``, or any rank that ``categories.json`` gives (``order=…``).

    Returns:
        One class for every category that has images, in the order of their ids.

    Raises:
        ValueError: If the annotations or images are missing, or nothing is named by `where`.
    """
    file = root / f"{split}.json"
    if not file.is_file():
        raise ValueError(
            f"inaturalist: expected the annotations at {file}, found no such file; name the folder with --root."
        )
    content = json.loads(file.read_text(encoding="utf-8"))
    missing = [part for part in ("images", "annotations", "categories") if part not in content]
    if missing:
        raise ValueError(f"inaturalist: expected images, annotations and categories in {file}, {missing} are missing.")
    categories = {category["id"]: category for category in content["categories"]}
    names = root / "categories.json"  # published later: the ranks, and the names that SPLIT.json hides behind numbers
    if names.is_file():
        for category in json.loads(names.read_text(encoding="utf-8")):
            categories.setdefault(category["id"], {}).update(category)
    wanted = _chosen(categories, where)
    files = {image["id"]: image["file_name"] for image in content["images"]}
    pairs = [(files[a["image_id"]], a["category_id"]) for a in content["annotations"] if a["category_id"] in wanted]
    present = sorted({category for _, category in pairs})
    if not pairs:
        raise ValueError(f"inaturalist: expected images of {where or 'any category'} in {file}, it lists none.")
    labels = {category: label for label, category in enumerate(present)}
    name = f"iNaturalist {split}" + (f" {where}" if where else "")
    return as_task([(root / file, labels[category]) for file, category in pairs], name=name)


def _chosen(categories: dict[int, dict[str, Any]], where: str | None) -> set[int]:
    if where is None:
        return set(categories)
    rank, _, name = where.partition("=")
    chosen = {number for number, category in categories.items() if category.get(rank) == name}
    if not chosen:
        known = Counter(str(category[rank]) for category in categories.values() if rank in category)
        ranks = sorted({rank for category in categories.values() for rank in category})
        advice = f"{rank} is one of {', '.join(sorted(known)[:20])}" if known else f"ranks are {', '.join(ranks)}"
        raise ValueError(f"inaturalist: expected categories with {where}, found none; {advice}.")
    return chosen


def write_synthetic(root: Path, count: int, split: str = "train2018", *, side: int = 500, classes: int = 20) -> None:
    """Write a stand-in of iNaturalist 2018's layout: JPEGs of about `side` pixels, class c with a share of 1/(c + 1).

    Args:
        root: Folder to write to.
        count: How many.
        split: Name of the annotation file.
        side: Of the longer side, pixels; the published images have up to 800.
        classes: At most so many, spread over three supercategories.

    Raises:
        ValueError: If `root` already holds annotations of that name: they may be the real ones.
    """
    file = root / f"{split}.json"
    if file.exists():
        raise ValueError(
            f"inaturalist: expected an empty folder for the stand-in, found {file}; leave out --synthetic."
        )
    share = 1 / np.arange(1, classes + 1)
    upto = np.ceil(np.cumsum(share) / share.sum() * count).astype(int)
    supers = ("Aves", "Insecta", "Plantae")
    categories = [{"id": c, "name": f"species {c}", "supercategory": supers[c % 3]} for c in range(classes)]
    images, annotations = [], []
    for number in range(count):
        c = int(np.searchsorted(upto, number, side="right"))
        name = f"train_val2018/{supers[c % 3]}/{c}/{number:032x}.jpg"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _image(number, c, side).save(path, quality=90)
        images.append({"id": number, "file_name": name})
        annotations.append({"id": number, "image_id": number, "category_id": c})
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content), encoding="utf-8")


def _image(number: int, label: int, side: int) -> Image.Image:
    """Noise at several scales, which costs a decoder what a photograph of this size does (about 100 kB at 500 px)."""
    random = np.random.default_rng([number, label])
    short = int(side * random.choice([0.67, 0.75, 1.0]))
    width, height = (side, short) if random.integers(2) else (short, side)
    colour = np.random.default_rng(label).uniform(60, 195, 3)
    canvas = np.zeros((height, width, 3)) + colour
    for scale, strength in ((2, 12), (8, 25), (64, 30)):
        noise = random.normal(128, strength, (height // scale + 1, width // scale + 1, 3)).clip(0, 255).astype(np.uint8)
        canvas += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), float) - 128
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def measure(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Return images a second of decoding alone and of every stage, and the share in which the device waits."""
    probe = Probe(random_probe(options.arch).module, "fc", options.arch, "random", Preprocess().with_size(options.size))
    assert task.labels is not None  # a list of files states them
    indices = draw(task.labels, options.num_samples, 0)
    check_same_batches(task, indices[: 2 * options.workers + 1], probe, options.workers)
    decoding = [_decode(task, indices, probe, options) for _ in range(options.repeats)]
    clocks: list[Stages] = []
    fisher_embed(_few(task), probe, device=options.device, batch_size=2, progress=False)  # what a first call loads
    for _ in range(options.repeats):
        with stages() as clock:
            embedding = fisher_embed(
                task,
                probe,
                num_samples=options.num_samples,
                num_workers=options.workers,
                batch_size=options.batch_size,
                device=options.device,
                progress=False,
            )
        clocks.append(clock)
    images = embedding.num_samples
    seconds = {name: median(asdict(clock)[name] for clock in clocks) for name in asdict(clocks[0])}
    return {
        "task": task.name,
        "synthetic": options.synthetic is not None,
        "images": images,
        "classes": embedding.head.num_outputs,
        "workers": options.workers,
        "arch": options.arch,
        "size": options.size,
        "batch_size": options.batch_size,
        "device": options.device,
        "decode_images_per_second": images / summary(decoding)["median"],
        "seconds": seconds,
        "images_per_second": {name: images / seconds[name] for name in ("features", "head", "fisher")},
        "waiting_share": median(clock.waiting_share for clock in clocks),
        "target": LIMIT,
    }


def check_same_batches(task: Task, indices: torch.Tensor, probe: Probe, workers: int) -> None:
    """Stop the benchmark unless the batches are the same, bit for bit, in any number of processes."""
    one, many = (
        torch.cat([batch.images for batch in batches(task, indices, probe.preprocess, batch_size=2, num_workers=n)])
        for n in (0, workers)
    )
    if not torch.equal(one, many):
        raise SystemExit(f"inaturalist: expected the same images from {workers} processes as from one; nothing timed.")


def _decode(task: Task, indices: torch.Tensor, probe: Probe, options: argparse.Namespace) -> float:
    """Return the seconds that decoding takes where nobody computes."""
    started = time.perf_counter()
    for _ in batches(task, indices, probe.preprocess, batch_size=options.batch_size, num_workers=options.workers):
        pass
    return time.perf_counter() - started


def _few(task: Task) -> list[tuple[torch.Tensor, int]]:
    """Four images in memory, of two classes."""
    return [(task[i][0], i % 2) for i in range(min(4, len(task)))]


def report(result: dict[str, Any]) -> None:
    """Print the figures."""
    seconds, rate = result["seconds"], result["images_per_second"]
    total = seconds["features"] + seconds["head"] + seconds["fisher"]
    print_table(
        f"{result['task']}: {result['images']} images of {result['classes']} classes, {result['arch']}, "
        f"{result['workers']} decoding processes, {result['device']}",
        ["", "seconds", "images/s", "share of wall time"],
        [
            *[(name, seconds[name], rate[name], seconds[name] / total) for name in ("features", "head", "fisher")],
            ("device waits for images", seconds["waiting"], None, result["waiting_share"]),
            ("decoding alone", None, result["decode_images_per_second"], None),
        ],
    )


if __name__ == "__main__":
    main()
