"""How long do the d_sym distances between all of the paper's 1,460 tasks take?

    python benchmarks/distances.py [--tasks 1460] [--filters 8512] [--rounds 5]

In turns: a plain NumPy loop over pairs (a sample, extrapolated to all), rows of torch operations in float64, as the
other distances are computed (a sample of rows, extrapolated), and `distance_matrix`. With a GPU also `distance_matrix`
of rows that are there, and the same without the copy of its result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from _measure import check, interleave, peak_memory, print_table, stop_if, summary
from _record import write_record

from task2vec_ext import distance_matrix
from task2vec_ext.distance.rules import RULES, Tasks, row_distances
from task2vec_ext.kernels.pairwise import sym_distances

SAMPLE, RUN = 1000, 50  # pairs of the loop, about 15 ms
TOLERANCE = 1e-6  # what `sym_distances` promises

Result = dict[str, Any]


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

    expected = numpy_loop(rows.numpy(), sample)

    def error(matrix: torch.Tensor) -> float:
        return float(np.abs(matrix.numpy()[sample[:, 0], sample[:, 1]] - expected).max())

    matrix = distance_matrix(rows)  # the first call also pages the code in
    result: Result = {"tasks": T, "filters": K, "threads": options.threads}
    result["max_error"] = check("distances", error(matrix), TOLERANCE)

    rule, few = RULES["sym"], 8
    vectors = rule.prepare(Tasks(rows, torch.empty(0), [], ""))
    steps: dict[str, Callable[[], object]] = {
        "NumPy loop": lambda: numpy_loop(rows.numpy(), sample),
        "torch float64 rows": lambda: row_distances(rule, vectors.row(0), vectors.rows(slice(1, 1 + few))),
        "native": lambda: distance_matrix(rows),
    }
    failed = []
    if torch.cuda.is_available():
        on_gpu = rows.cuda()
        found = distance_matrix(on_gpu)
        to_loop, to_cpu = error(found), float((found - matrix).abs().max())
        result |= {"max_error_gpu": to_loop, "max_difference_gpu_to_cpu": to_cpu}
        if to_loop <= TOLERANCE and to_cpu <= 2 * TOLERANCE:  # each of the two may be off by as much
            steps["native, GPU (result on the CPU)"] = lambda: distance_matrix(on_gpu)
            steps["native, GPU (result stays there)"] = lambda: sym_distances(on_gpu)
        else:
            failed = [f"distances on the GPU: off by {to_loop:.1e} from the loop, {to_cpu:.1e} from the CPU; not timed"]
    write_record("distances", result)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extrapolated = {"NumPy loop": pairs / len(sample), "torch float64 rows": pairs / few}
    seconds = {
        name: [extrapolated.get(name, 1.0) * value for value in values]
        for name, values in interleave(steps, options.rounds, device).items()
    }
    loop = summary(seconds["NumPy loop"])["median"]
    result["ways"] = {
        name: {
            "seconds": summary(values),
            "times_the_loop": loop / summary(values)["median"],
            "extrapolated_by": extrapolated.get(name, 1.0),
        }
        for name, values in seconds.items()
    }
    write_record("distances", result)
    peak = peak_memory(build, T, K, device="cpu") if sys.platform == "linux" else None
    path = write_record("distances", result | {"peak_bytes_beyond_input": peak})
    report(result, peak)
    print(path)
    stop_if(failed)


def report(result: Result, peak: int | None) -> None:
    """Print the figures."""
    on_gpu = f"; on the GPU {result['max_error_gpu']:.1e}" if "max_error_gpu" in result else ""
    print_table(
        f"{result['tasks']} × {result['filters']}; largest error against the loop {result['max_error']:.1e}{on_gpu}; "
        f"native peak beyond the input {peak} bytes",
        ["way", "seconds", "extrapolated by", "times the loop"],
        [
            (name, way["seconds"]["median"], way["extrapolated_by"], way["times_the_loop"])
            for name, way in result["ways"].items()
        ],
    )


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
