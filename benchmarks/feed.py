"""Does anybody wait for images? The loader against a bare loop, the cache against a memory copy, `fisher_embed` whole.

    python benchmarks/feed.py [--images DIR] [--only PART ...] [--before DIR]

`--images DIR` holds real images, which are enlarged (`_photos.write_photos`). `--before DIR` is a checkout of the
commit to compare `fisher_embed` with, its native module beside its sources.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import interleave, parser, peak_memory, print_table, ratio, summary
from _photos import write_photos
from _record import read_result, results_folder, write_record

from task2vec_ext import EmbedSettings, ImageCache, Preprocess, VariationalSettings, as_task, fisher_embed
from task2vec_ext.data import Loader, load_image
from task2vec_ext.data import folder as source

IMAGES = 437_513
"""Of iNaturalist 2018's training split."""
ON_PAPER = {"tf32": (40.7, 32.8), "bf16": (20.3, 16.9)}
"""Milliseconds of a plain step and of the Fisher pass, ResNet-34, 256 images, an H100: docs/gpu_on_paper.md."""
CROPS = Preprocess()
BATCH, EMBEDDED = 32, 64
_EMBED = """
import os, sys, time, torch
from task2vec_ext import fisher_embed, load_probe
folder, few, name, side = sys.argv[1:]
torch.set_num_threads(2)
probe = load_probe(name, weights="offline" if name == "tiny" else "random", image_size=int(side) if side else None)
how = dict(num_workers=2, device="cpu", progress=False)
fisher_embed(few, probe, **how)
started, before = time.perf_counter(), sum(os.times()[:4])
fisher_embed(folder, probe, **how)
print(time.perf_counter() - started, sum(os.times()[:4]) - before)
"""


def main() -> None:
    """Check, time, print, write; a part that is left out keeps its figures of the same commit."""
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--images", type=Path, help="real images to enlarge")
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--before", type=Path, help="checkout to compare fisher_embed with")
    arguments.add_argument("--count", type=int, default=320, help="images of a pass of the loader")
    arguments.add_argument("--embedded", type=int, default=1000, help="images of fisher_embed")
    arguments.add_argument("--kept", type=int, default=8000, help="images of which the memory is measured")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    result = read_result("feed")
    for part in options.only:
        with tempfile.TemporaryDirectory() as folder:
            result[part] = PARTS[part](Path(folder), options)
        print_table(part, ["", "figure", "asked for"], [(r["what"], r["value"], r["ask"]) for r in result[part]])
        path = write_record("feed", result)
    print(path)


def row(what: str, value: Any, ask: str, **more: Any) -> dict[str, Any]:
    """Return a figure as the record has it."""
    return {"what": what, "value": value["median"] if isinstance(value, dict) else value, "ask": ask, **more}


def _decode(paths: list[str]) -> None:
    for path in paths:
        CROPS.cropped(load_image(path))


def loader(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The loader in two processes against a loop that decodes and resizes in two, and keeps nothing."""
    rows = []
    for side in (500, 800):
        paths = [str(path) for path in write_photos(folder / str(side), side, options.count, options.images)]
        task = as_task(folder / str(side))
        reader = Loader(task, CROPS, batch_size=BATCH, num_workers=2)
        with multiprocessing.get_context("fork").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            units = [paths[start : start + 16] for start in range(0, len(paths), 16)]
            ways: dict[str, Callable[[], object]] = {
                "bare": lambda pool=pool, units=units: list(pool.imap_unordered(_decode, units)),
                "loader": lambda reader=reader: sum(len(b.index) for b in reader.batches(range(options.count))),
            }
            for way in ways.values():
                way()
            seconds = interleave(ways, options.repeats, "cpu")
            loader_cpu = _cpu_seconds(ways["loader"])
            bare_cpu = _cpu_seconds(ways["bare"])
        reader.close()
        speed = ratio(seconds["bare"], seconds["loader"])
        rate = options.count / summary(seconds["bare"])["median"]
        rows.append(row(f"loader ÷ bare loop, {side} px", speed, "≥ 0.9", ratio=speed, bare_images_per_second=rate))
        rows.append(row(f"the same in CPU time of all processes, {side} px", bare_cpu / loader_cpu, "≥ 0.9"))
        rows.append(row(f"images a second of the bare loop, {side} px", rate, ""))
        rows.append(row(f"CPU milliseconds an image of the bare loop, {side} px", 1e3 * bare_cpu / options.count, ""))
    return rows


def _cpu_seconds(way: Callable[[], object]) -> float:
    """CPU time of this process and its children in one run: what counts on a machine that others share."""

    def used() -> float:
        children = [str(process.pid) for process in multiprocessing.active_children()]
        fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in ("self", *children)]
        return sum(int(part[11]) + int(part[12]) for part in fields) / os.sysconf("SC_CLK_TCK")

    before = used()
    way()
    return used() - before


def waiting(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The share of its time that a consumer waits which takes batches as fast as two cores can decode."""
    count = 4 * options.count
    paths = [str(path) for path in write_photos(folder, 500, count, options.images)]
    shares = []
    with multiprocessing.get_context("fork").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        units = [paths[start : start + 16] for start in range(0, count, 16)]
        for _ in range(max(options.repeats // 2, 1)):
            started = time.perf_counter()
            list(pool.imap_unordered(_decode, units))
            period = BATCH * (time.perf_counter() - started) / count
            reader, waited = Loader(as_task(folder), CROPS, batch_size=BATCH, num_workers=2), 0.0
            batches = reader.batches(range(count))
            next(batches)  # processes start
            started = time.perf_counter()
            while True:
                time.sleep(period)
                before = time.perf_counter()
                if next(batches, None) is None:
                    break
                waited += time.perf_counter() - before
            shares.append(waited / (time.perf_counter() - started))
            reader.close()
    return [row("time that a consumer waits", summary(shares), "≤ 5 %", share=summary(shares))]


def cache(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The second pass against a copy of the same bytes, batch by batch."""
    count = 4 * options.count
    write_photos(folder / "images", 250, count, options.images)
    task = as_task(folder / "images")
    bytes_of = count * 3 * CROPS.crop**2
    kinds = {
        "memory": ImageCache(2 * bytes_of, 0),
        "the temporary file": ImageCache(0, 2 * bytes_of),
        "a folder": ImageCache(0, 2 * bytes_of, folder / "kept"),
    }
    loaders = {kind: Loader(task, CROPS, batch_size=BATCH, num_workers=2, cache=kept) for kind, kept in kinds.items()}
    for each in loaders.values():
        for _ in range(2):
            crops = torch.cat([batch.images for batch in each.batches(range(count))])
    ways: dict[str, Callable[[], object]] = {"copy": lambda: [part.clone() for part in crops.split(BATCH)]}
    for kind, each in loaders.items():
        ways[kind] = lambda each=each: sum(len(batch.index) for batch in each.batches(range(count)))
    seconds = interleave(ways, options.repeats, "cpu")
    rows = []
    for kind in loaders:
        speed = ratio(seconds["copy"], seconds[kind])
        rate = count / summary(seconds[kind])["median"]
        what = f"second pass from {kind} ÷ memory copy"
        rows.append(row(what, speed, "≥ 0.5" if kind == "memory" else "", ratio=speed, images_per_second=rate))
    rows.append(row("bytes an image, between processes and to the device", crops.nbytes / count, "150,528"))
    return rows


def decodes(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Decodes an image of whole embeddings."""
    write_photos(folder, 250, EMBEDDED, options.images)
    read: list[str] = []
    decode = source.load_image

    def counted(path: str, **how: Any) -> torch.Tensor:
        read.append(path)
        return decode(path, **how)

    source.load_image = counted
    rows = []
    for name in ("signed", "exact", "variational"):
        read.clear()
        variational = VariationalSettings(epochs=4, epoch_samples=EMBEDDED) if name == "variational" else None
        fisher_embed(folder, "tiny", settings=EmbedSettings(estimator=name, variational=variational), progress=False)
        rows.append(row(f"decodes ÷ images, {name}", len(read) / EMBEDDED, "1"))
    source.load_image = decode
    return rows


def memory(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of two passes beyond the cache's budget."""
    write_photos(folder, 230, options.kept, options.images)
    budget = 256 << 20
    used = peak_memory(_two_passes, str(folder), budget, options.kept, device="cpu")
    what = f"peak memory beyond a budget of 256 MiB, {options.kept:,} images, MB"
    return [row(what, (used - budget) / 1e6, "≤ 200")]


def _two_passes(folder: str, budget: int, count: int) -> Callable[[], object]:
    reader = Loader(as_task(folder), CROPS, batch_size=BATCH, num_workers=2, cache=ImageCache(budget))

    def passes() -> None:
        for _ in range(2):
            for _ in reader.batches(range(count)):
                pass
        reader.close()

    return passes


def embed(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """`fisher_embed` against that of another commit, each in its own process, in turns."""
    if options.before is None:
        return []
    write_photos(folder / "few", 500, 8, options.images)
    write_photos(folder / "all", 500, options.embedded, options.images)
    rows = []
    for name, side, ask in (("tiny", "", "≤ 0.65"), ("resnet18", "112", "≤ 0.85")):

        def run(checkout: Path, name: str = name, side: str = side) -> tuple[float, ...]:
            command = [sys.executable, "-c", _EMBED, str(folder / "all"), str(folder / "few"), name, side]
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            done = subprocess.run(
                command, cwd=checkout, env=environment, capture_output=True, text=True, check=True
            )  # `python -c` looks in its folder first
            return tuple(map(float, done.stdout.split()[-2:]))

        here = Path(__file__).resolve().parent.parent
        now, before = [], []
        for _ in range(max(options.repeats // 2, 1)):
            before.append(run(options.before))
            now.append(run(here))
        for number, what in enumerate(("", ", CPU time of all processes")):
            ours, theirs = ([run[number] for run in runs] for runs in (now, before))
            which = f"fisher_embed ÷ before, {options.embedded:,} JPEGs of 500 px, {name} {side}".rstrip() + what
            faster = ratio(ours, theirs)
            rows.append(row(which, faster, ask, ratio=faster, seconds=summary(ours), before=summary(theirs)))
    return rows


def projection(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """How busy would an H100 be? From the rate of a core here and the times on paper: not measured on a GPU."""
    path = results_folder() / "feed.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["result"].get("loader", []) if path.exists() else []
    projected = []
    for side in (500, 800):
        what = f"CPU milliseconds an image of the bare loop, {side} px"
        rates = [1e3 / known["value"] for known in rows if known["what"] == what]
        for per_core in rates:
            for cores in (16, 64, 128):
                for precision, (plain, fisher) in ON_PAPER.items():
                    features, fisher = plain / 3 / 256e3, fisher / 256e3  # seconds an image
                    first = max(1 / (cores * per_core), features)
                    busy, hours = (features + fisher) / (first + fisher), IMAGES * (first + fisher) / 3600
                    node = f"{side} px, {cores} cores of {per_core:.0f} images/s, {precision}"
                    limit = "GPU" if first == features else "decoding"
                    projected.append(row(f"{node}: the GPU works", busy, "", hours=hours, limit=limit))
    return projected


PARTS: dict[str, Callable[[Path, argparse.Namespace], list[dict[str, Any]]]] = {
    "loader": loader,
    "waiting": waiting,
    "cache": cache,
    "decodes": decodes,
    "memory": memory,
    "embed": embed,
    "projection": projection,
}

if __name__ == "__main__":
    main()
