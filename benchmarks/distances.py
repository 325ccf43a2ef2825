"""How long do the d_sym distances between all of the paper's 1,460 tasks take?

    python benchmarks/distances.py [--tasks 1460] [--filters 8512] [--rounds 5]

Three ways in turn: a plain NumPy loop over pairs (a sample of pairs, extrapolated to all), rows of torch operations in
float64, as the other distances are computed (a sample of rows, extrapolated), and `distance_matrix`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from _measure import check, interleave, peak_memory, print_table, summary
from _record import write_record

from task2vec_ext import distance_matrix
from task2vec_ext.distance.rules import RULES, Tasks, row_distances

SAMPLE, RUN = 1000, 50  # pairs of the loop, about 15 ms
TOLERANCE = 1e-6


def main() -> None:
    """Check against the loop, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1460)
    parser.add_argument("--filters", type=int, default=8512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    T, K = options.tasks, options.filters
    rows, pairs = embeddings(T, K), T * (T - 1) // 2
    # Runs of a row's pairs, as the loop over all of them would take them: row i stays in the cache.
    starts = np.random.default_rng(1).integers(0, T - RUN, SAMPLE // RUN)
    sample = np.array([(i, i + 1 + step) for i in starts for step in range(RUN)])

    matrix = distance_matrix(rows)  # the first call also pages the code in
    expected = numpy_loop(rows.numpy(), sample)
    error = check("distances", float(np.abs(matrix.numpy()[sample[:, 0], sample[:, 1]] - expected).max()), TOLERANCE)

    rule, few = RULES["sym"], 8
    vectors = rule.prepare(Tasks(rows, torch.empty(0), [], ""))
    steps: dict[str, Callable[[], object]] = {
        "NumPy loop": lambda: numpy_loop(rows.numpy(), sample),
        "torch float64 rows": lambda: row_distances(rule, vectors.row(0), vectors.rows(slice(1, 1 + few))),
        "native": lambda: distance_matrix(rows),
    }
    extrapolated = {"NumPy loop": pairs / len(sample), "torch float64 rows": pairs / few}
    if torch.cuda.is_available():
        on_gpu = rows.cuda()
        distance_matrix(on_gpu)
        steps["native, GPU (result on the CPU)"] = lambda: distance_matrix(on_gpu)
    seconds = {
        name: [extrapolated.get(name, 1.0) * value for value in values]
        for name, values in interleave(steps, options.rounds, "cpu").items()
    }
    peak = peak_memory(build, T, K, device="cpu") if sys.platform == "linux" else None
    loop = summary(seconds["NumPy loop"])["median"]
    ways = {
        name: {
            "seconds": summary(values),
            "times_the_loop": loop / summary(values)["median"],
            "extrapolated_by": extrapolated.get(name, 1.0),
        }
        for name, values in seconds.items()
    }
    print_table(
        f"{T} × {K}; largest error against the loop {error:.1e}; native peak beyond the input {peak} bytes",
        ["way", "seconds", "extrapolated by", "times the loop"],
        [(name, way["seconds"]["median"], way["extrapolated_by"], way["times_the_loop"]) for name, way in ways.items()],
    )
    result = {"tasks": T, "filters": K, "threads": options.threads, "max_error": error}
    print(write_record("distances", {**result, "peak_bytes_beyond_input": peak, "ways": ways}))


def embeddings(T: int, K: int) -> torch.Tensor:
    """``[T, K]`` log-normal float64."""
    return torch.exp(1.5 * torch.randn(T, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def numpy_loop(rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """d_sym as printed: two vectors a pair."""
    distances = np.empty(len(pairs))
    for at, (i, j) in enumerate(pairs):
        r = rows[i] / (rows[i] + rows[j])
        q = rows[j] / (rows[i] + rows[j])
        distances[at] = 1 - r @ q / (np.linalg.norm(r) * np.linalg.norm(q))
    return distances


def build(T: int, K: int) -> Callable[[], object]:
    """Return the step whose memory is measured, its code loaded."""
    rows = embeddings(T, K)
    distance_matrix(rows[:2])
    return partial(distance_matrix, rows)


if __name__ == "__main__":
    main()
