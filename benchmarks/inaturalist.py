"""Does the loader keep the device busy? An embedding of iNaturalist 2018 images from disk, and who waits for whom.

    python benchmarks/inaturalist.py --root DIR --split train2018 [--where order=Passeriformes] [--num-samples 512]
    python benchmarks/inaturalist.py --synthetic 256      # a stand-in of the same layout: needs no data

DIR holds iNaturalist 2018 in a layout that `task2vec_ext.data.sources.inaturalist` reads. The time of the whole split
is projected from the rates of the images that were drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _measure import parser, print_table, seconds_of, summary
from _record import write_record
from _stages import timed_stages
from _step import random_probe
from PIL import Image

from task2vec_ext import Preprocess, Probe, Task, fisher_embed
from task2vec_ext.data import batches, draw, read_labels, union
from task2vec_ext.data.sources import inaturalist
from task2vec_ext.embed import Work
from task2vec_ext.settings import EmbedSettings

LIMIT = 0.10
"""Share of the wall time that the device may wait for images."""


def main() -> None:
    """Read, check, time, print, write."""
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--root", type=Path, help="folder of the data set; with --synthetic where to write one")
    arguments.add_argument("--split", default="train", help="train or val, also as published: train2018")
    arguments.add_argument("--where", metavar="RANK=TAXON", help="one taxon, such as supercategory=Aves; default: all")
    arguments.add_argument("--synthetic", type=int, metavar="N", help="first write a stand-in of N images")
    arguments.add_argument(
        "--distinct", type=int, metavar="N", help="with --synthetic: draw N images a class, copy them"
    )
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
                write_synthetic(root, options.synthetic, distinct=options.distinct)
            task = task_of(root, options.split, options.where)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        result = measure(task, options)
    report(result)
    print(write_record("inaturalist", result))


def task_of(root: Path, split: str = "train", where: str | None = None) -> Task:
    """Return all species of iNaturalist 2018, or those of the taxon that RANK=TAXON names, as one task."""
    rank, _, taxon = (where or "supercategory=").partition("=")
    tasks = inaturalist(2018, root, level=rank, split=split.removesuffix("2018"), min_classes=1)
    if where is None:
        return union(tasks, name="inat2018")
    taxa = [name.split(" ", 2)[2] for name in tasks.names]  # "inat2018 RANK TAXON"
    if taxon not in taxa:
        raise ValueError(f"inaturalist: expected {rank} to be one of {', '.join(taxa)}; got {taxon!r}.")
    return tasks[taxa.index(taxon)]


def write_synthetic(root: Path, count: int, *, side: int = 500, classes: int = 20, distinct: int | None = None) -> None:
    """Write a stand-in of iNaturalist 2018: JPEGs of about `side` pixels, class c with a share of 1/(c + 1).

    Args:
        root: Folder to write to.
        count: Number of images.
        side: The longer side, pixels; the published images have up to 800.
        classes: At most so many, spread over three supercategories.
        distinct: Images drawn for each class, 27 ms each; the others are copies, as slow to decode. None: all of them.

    Raises:
        ValueError: If `root` already holds annotations: they may be the real ones.
    """
    file = root / "train2018.json"
    if file.exists():
        raise ValueError(
            f"inaturalist: expected an empty folder for the stand-in, found {file}; leave out --synthetic."
        )
    share = 1 / np.arange(1, classes + 1)
    upto = np.ceil(np.cumsum(share) / share.sum() * count).astype(int)
    supers = ("Aves", "Insecta", "Plantae")
    categories = [{"id": c, "name": f"species {c}", "supercategory": supers[c % 3]} for c in range(classes)]
    images, annotations = [], []
    drawn: dict[tuple[int, int], Path] = {}
    for number in range(count):
        c = int(np.searchsorted(upto, number, side="right"))
        name = f"train_val2018/{supers[c % 3]}/{c}/{number:032x}.jpg"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        first = drawn.setdefault((c, number if distinct is None else number % distinct), path)
        if first == path:
            _image(number, c, side).save(path, quality=90)
        else:
            shutil.copyfile(first, path)
        images.append({"id": number, "file_name": name})
        annotations.append({"id": number, "image_id": number, "category_id": c})
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content), encoding="utf-8")


def _image(number: int, label: int, side: int) -> Image.Image:
    """Noise at several scales: as slow to decode as a photograph of this size (about 100 kB at 500 px)."""
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
    labels = read_labels(task)
    indices = draw(labels, options.num_samples, 0)
    check_same_batches(task, indices[: 2 * options.workers + 1], probe, options.workers)

    def decode() -> None:
        for _ in batches(task, indices, probe.preprocess, batch_size=options.batch_size, num_workers=options.workers):
            pass

    decoding = [seconds_of(decode, options.device) for _ in range(options.repeats)]
    settings = EmbedSettings(num_samples=options.num_samples)
    work = Work(options.device, options.batch_size, options.workers, progress=False)
    few = [(task[i][0], i % 2) for i in range(4)]
    fisher_embed(few, probe, device=options.device, batch_size=2, progress=False)  # what a first call loads
    clocks = [timed_stages(task, probe, settings, work) for _ in range(options.repeats)]
    images = len(indices)
    seconds = {name: median(asdict(clock)[name] for clock in clocks) for name in asdict(clocks[0])}
    rates = {name: images / seconds[name] for name in ("features", "head", "fisher")}
    return {
        "task": task.name,
        "synthetic": options.synthetic is not None,
        "images": images,
        "classes": int(labels.max()) + 1,
        "workers": options.workers,
        "arch": options.arch,
        "size": options.size,
        "batch_size": options.batch_size,
        "device": options.device,
        "decode_images_per_second": images / summary(decoding)["median"],
        "seconds": seconds,
        "images_per_second": rates,
        "waiting_share": median(clock.waiting_share for clock in clocks),
        "whole_split": {"images": len(task), "hours": sum(len(task) / rate for rate in rates.values()) / 3600},
        "target": LIMIT,
    }


def check_same_batches(task: Task, indices: torch.Tensor, probe: Probe, workers: int) -> None:
    """Stop the benchmark unless the batches from worker processes are the same, bit for bit."""
    one, many = (
        torch.cat([batch.images for batch in batches(task, indices, probe.preprocess, batch_size=2, num_workers=n)])
        for n in (0, workers)
    )
    if not torch.equal(one, many):
        raise SystemExit(f"inaturalist: expected the same images from {workers} processes as from one; nothing timed.")


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
    waits = "The device waits for images" if result["waiting_share"] > LIMIT else "Images wait for the device"
    whole = result["whole_split"]
    print(f"{waits}: the device idles {result['waiting_share']:.0%} of the time.")
    print(f"The split's {whole['images']:,} images would take {whole['hours']:.2g} hours.")


if __name__ == "__main__":
    main()
