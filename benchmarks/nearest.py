"""How long does it take to find a task's nearest among very many, and how many of them does the shortlist find?

    python benchmarks/nearest.py --data DIR [--tasks 200000] [--queries 50] [--images 60] [--cache DIR]

The real tasks of --data are embedded first (`build_library`; --cache keeps them). Synthetic tasks are drawn around them
and written as a library's cache is: the log-Fisher of a real task, moved up to half of the way to another's, with 10 %
noise on each filter (about the error of an embedding of a hundred images) and a random scale. Queries are drawn alike.
Each query is then compared with all rows (`task2vec_ext.library.nearest`), and with those of the nearest sketches.
Checked first: float32 rows give the distances of float64 ones.

    python benchmarks/nearest.py --data DIR --tasks 1000000 --filters 300

takes every so-many-th filter of the real tasks: a million rows of 4,800 filters are 19 GB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from _measure import check, peak_memory, print_table, say, summary
from _record import write_record
from _tasks import parser, probe, real_tasks
from torch import Tensor

from task2vec_ext import build_library
from task2vec_ext.embedding import ProbeInfo
from task2vec_ext.kernels.pairwise import sym_distances
from task2vec_ext.library import nearest as search
from task2vec_ext.library.cache import Segment
from task2vec_ext.library.settings import LibrarySettings
from task2vec_ext.settings import EmbedSettings

K_NEAREST = 10
NOISE, MIXED, SCALE = 0.1, 0.5, 0.5
ROWS = 3000  # of a file
ROUNDING = 1e-7
"""Largest error of d_sym that float32 rows may have."""


def main() -> None:
    """Check, then time and count."""
    arguments = parser(__doc__)
    arguments.add_argument("--tasks", type=int, default=200_000)
    arguments.add_argument("--queries", type=int, default=50)
    arguments.add_argument("--images", type=int, default=60, help="of each real task")
    arguments.add_argument("--candidates", type=int, nargs="+", default=[100, 300, search.CANDIDATES])
    arguments.add_argument("--filters", type=int, help="of K, evenly spaced; default: all")
    arguments.add_argument("--cache", type=Path, help="folder that keeps the real tasks' library")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        real = real_embeddings(options, options.cache or Path(folder) / "library")
        real = real[:, :: max(1, real.shape[1] // (options.filters or real.shape[1]))]
        for result in measure(real, options.tasks, options.queries, options.candidates, Path(folder)):
            path = write_record("nearest", result)
    print_table(
        f"{options.tasks:,} tasks of {real.shape[1]:,} filters around {len(real)} real ones; "
        f"rounding {result['rounding']:.1e}",
        ["way", "s per query", "recall@10", "lowest"],
        [(name, way["seconds"]["median"], way["recall"], way["lowest"]) for name, way in result["ways"].items()],
    )
    print(f"memory of the exact way {result['exact_peak_bytes'] / 2**20:.0f} MiB")
    print(path)


def real_embeddings(options: Any, folder: Path) -> Tensor:
    """Return F of the real tasks, ``[T, K]``."""
    say("real tasks")
    settings = EmbedSettings(num_samples=options.images)
    library = build_library(real_tasks(options.data), folder, probe(options), settings=settings)
    done = [entry.name for entry in library.entries() if entry.state == "done"]  # not tasks of more classes than images
    return torch.stack([library.embedding(name).fisher for name in done])


def measure(real: Tensor, tasks: int, queries: int, candidates: list[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the record after each way: rounding, memory, seconds, recall."""
    rounded = sym_distances(real.float().double())
    rounding = check("float32 rows", float((rounded - sym_distances(real)).abs().max()), ROUNDING)
    say(f"drawing {tasks:,} tasks")
    random = torch.Generator().manual_seed(0)
    segments = []
    for number, start in enumerate(range(0, tasks, ROWS)):
        rows = draw(real, min(ROWS, tasks - start), random)
        parts = {"fisher": rows.float(), "sketch": search.sketch(rows)}
        made_with = LibrarySettings(ProbeInfo("none", "none", "0"), EmbedSettings(), real.shape[1])
        segments.append(Segment(folder / f"rows-{number}.safetensors", parts, [], []).save(made_with))
    asked = draw(real, queries, random)

    say("all rows")
    search.nearest(blocks(segments, tasks), asked[0], K_NEAREST)  # the files come into memory, as far as they fit
    seconds, truth = [], []
    for query in asked:
        started = perf_counter()
        truth.append(search.nearest(blocks(segments, tasks), query, K_NEAREST).numbers)
        seconds.append(perf_counter() - started)
    ways = {"all rows": {"seconds": summary(seconds), "recall": 1.0, "lowest": 1.0}}
    result: dict[str, Any] = {"tasks": tasks, "filters": real.shape[1], "real_tasks": len(real), "queries": queries}
    result |= {"rounding": rounding, "ways": ways}
    result["exact_peak_bytes"] = peak_memory(_search, str(folder), asked[0].tolist(), tasks, device="cpu")
    yield result

    for count in candidates:
        say(f"shortlist of {count}")
        search.CANDIDATES = count
        seconds, recall = [], []
        for query, expected in zip(asked, truth, strict=True):
            started = perf_counter()
            found = shortlisted(segments, tasks, query)
            seconds.append(perf_counter() - started)
            recall.append(float(torch.isin(found, expected).float().mean()))
        ways[f"shortlist of {count:,}"] = {
            "seconds": summary(seconds),
            "recall": sum(recall) / len(recall),
            "lowest": min(recall),
        }
        yield result


def draw(real: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return synthetic tasks around real ones, ``[count, K]`` float64 (module docstring)."""
    logarithms = real.clamp(min=torch.finfo(torch.float32).tiny).log()
    ours, others = torch.randint(len(real), (2, count), generator=random)
    share = MIXED * torch.rand(count, 1, generator=random, dtype=torch.float64)
    noise = NOISE * torch.randn(count, real.shape[1], generator=random, dtype=torch.float64)
    scale = SCALE * torch.randn(count, 1, generator=random, dtype=torch.float64)
    drawn = (torch.lerp(logarithms[ours], logarithms[others], share) + noise + scale).exp()
    return drawn * (real[ours] > 0)  # a dead filter stays dead


def blocks(segments: Sequence[Segment], tasks: int, what: str = "fisher") -> Iterator[tuple[Tensor, Tensor]]:
    """Yield numbers and rows, a thousand at a time."""
    for segment, numbers in zip(segments, torch.arange(tasks).split(ROWS), strict=True):
        for some in numbers.split(1000):
            yield some, segment.rows(what, some - numbers[0])


def shortlisted(segments: Sequence[Segment], tasks: int, query: Tensor) -> Tensor:
    """Return the nearest among those with near sketches."""
    near = search.candidates(blocks(segments, tasks, "sketch"), query)
    places = near // ROWS
    chosen = (
        (near[places == s], segments[s].rows("fisher", near[places == s] % ROWS)) for s in places.unique().tolist()
    )
    return search.nearest(chosen, query, K_NEAREST).numbers


def _search(folder: str, query: list[float], tasks: int) -> Any:
    segments = [Segment(Path(folder) / f"rows-{n}.safetensors", None, [], []) for n in range(-(-tasks // ROWS))]
    asked = torch.tensor(query, dtype=torch.float64)
    search.nearest(blocks(segments[:1], min(tasks, ROWS)), asked, K_NEAREST)  # the code's own pages
    return partial(_all, segments, asked, tasks)


def _all(segments: Sequence[Segment], asked: Tensor, tasks: int) -> Any:
    return search.nearest(blocks(segments, tasks), asked, K_NEAREST)


if __name__ == "__main__":
    main()
