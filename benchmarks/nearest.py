"""How long does it take to find a task's nearest among very many, and how many of them does the shortlist find?

    python benchmarks/nearest.py --data DIR [--tasks 200000] [--queries 50] [--images 60] [--cache DIR]

The real tasks of --data are embedded first (`build_library`; --cache keeps them). Synthetic tasks are drawn around them
and written to a temporary matrix: the log-Fisher of a real task, moved up to half of the way to another's, with 10 %
noise on each filter (about the error of an embedding of a hundred images) and a random scale. Queries are drawn alike.
Each query is then compared with all rows (`task2vec_ext.library.matrix.nearest`), and with the candidates of the faiss
shortlist. Checked first: float32 rows give the distances of float64 ones.
"""

from __future__ import annotations

import tempfile
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
from task2vec_ext.kernels.pairwise import sym_distances
from task2vec_ext.library import shortlist
from task2vec_ext.library.matrix import Matrix, nearest
from task2vec_ext.settings import EmbedSettings

K_NEAREST = 10
NOISE, MIXED, SCALE = 0.1, 0.5, 0.5
ROUNDING = 1e-7
"""Largest error of d_sym that float32 rows may have."""


def main() -> None:
    """Check, then time and count."""
    arguments = parser(__doc__)
    arguments.add_argument("--tasks", type=int, default=200_000)
    arguments.add_argument("--queries", type=int, default=50)
    arguments.add_argument("--images", type=int, default=60, help="of each real task")
    arguments.add_argument("--candidates", type=int, nargs="+", default=[100, 300, shortlist.CANDIDATES])
    arguments.add_argument("--cache", type=Path, help="folder that keeps the real tasks' library")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        real = real_embeddings(options, options.cache or Path(folder) / "library")
        result = measure(real, options.tasks, options.queries, options.candidates, Path(folder))
    print_table(
        f"{options.tasks:,} tasks of {real.shape[1]:,} filters around {len(real)} real ones; "
        f"rounding {result['rounding']:.1e}; shortlist made in {result['shortlist_build_seconds']:.0f} s",
        ["way", "s per query", "recall@10", "lowest"],
        [(name, way["seconds"]["median"], way["recall"], way["lowest"]) for name, way in result["ways"].items()],
    )
    print(f"memory of the exact way {result['exact_peak_bytes'] / 2**20:.0f} MiB")
    print(write_record("nearest", result))


def real_embeddings(options: Any, folder: Path) -> Tensor:
    """Return F of the real tasks, ``[T, K]``."""
    say("real tasks")
    settings = EmbedSettings(num_samples=options.images)
    library = build_library(real_tasks(options.data), folder, probe(options), settings=settings)
    done = [entry.name for entry in library.entries() if entry.state == "done"]  # not tasks of more classes than images
    return torch.stack([library.embedding(name).fisher for name in done])


def measure(real: Tensor, tasks: int, queries: int, candidates: list[int], folder: Path) -> dict[str, Any]:
    """Return the record: rounding, seconds, recall, memory."""
    rounded = sym_distances(real.float().double())
    rounding = check("float32 rows", float((rounded - sym_distances(real)).abs().max()), ROUNDING)
    say(f"drawing {tasks:,} tasks")
    random = torch.Generator().manual_seed(0)
    path = folder / "matrix.f32"
    with path.open("wb") as file:
        for start in range(0, tasks, 1000):
            file.write(draw(real, min(1000, tasks - start), random).float().numpy().tobytes())
    matrix, slots = Matrix(path, real.shape[1]), torch.arange(tasks)
    asked = draw(real, queries, random)

    say("all rows")
    nearest(matrix, asked[:1], slots, K_NEAREST)  # the file's pages come into memory, as far as they fit
    seconds, truth = [], []
    for query in asked.split(1):
        started = perf_counter()
        truth.append(nearest(matrix, query, slots, K_NEAREST).slots[0])
        seconds.append(perf_counter() - started)
    ways = {"all rows": {"seconds": summary(seconds), "recall": 1.0, "lowest": 1.0}}

    say("shortlist")
    started = perf_counter()
    index = shortlist.build(matrix, slots)
    built = perf_counter() - started
    for count in candidates:
        seconds, recall = [], []
        for query, expected in zip(asked.split(1), truth, strict=True):
            started = perf_counter()
            some = torch.from_numpy(index.search(shortlist.features(query).numpy(), count)[1])[0].sort().values
            found = nearest(matrix, query, some, K_NEAREST).slots[0]
            seconds.append(perf_counter() - started)
            recall.append(float(torch.isin(found, expected).float().mean()))
        ways[f"shortlist of {count:,}"] = {
            "seconds": summary(seconds),
            "recall": sum(recall) / len(recall),
            "lowest": min(recall),
        }
    return {
        "tasks": tasks,
        "filters": real.shape[1],
        "real_tasks": len(real),
        "queries": queries,
        "rounding": rounding,
        "shortlist_build_seconds": built,
        "ways": ways,
        "exact_peak_bytes": peak_memory(_search, str(path), asked[0].tolist(), tasks, device="cpu"),
    }


def draw(real: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return synthetic tasks around real ones, ``[count, K]`` float64 (module docstring)."""
    logarithms = real.clamp(min=torch.finfo(torch.float32).tiny).log()
    ours, others = torch.randint(len(real), (2, count), generator=random)
    share = MIXED * torch.rand(count, 1, generator=random, dtype=torch.float64)
    noise = NOISE * torch.randn(count, real.shape[1], generator=random, dtype=torch.float64)
    scale = SCALE * torch.randn(count, 1, generator=random, dtype=torch.float64)
    drawn = (torch.lerp(logarithms[ours], logarithms[others], share) + noise + scale).exp()
    return drawn * (real[ours] > 0)  # a dead filter stays dead


def _search(path: str, query: list[float], tasks: int) -> Any:
    matrix = Matrix(Path(path), len(query))
    asked, slots = torch.tensor([query], dtype=torch.float64), torch.arange(tasks)
    nearest(matrix, asked, slots[:1], K_NEAREST)  # the code's own pages
    return partial(nearest, matrix, asked, slots, K_NEAREST)


if __name__ == "__main__":
    main()
