"""How long do the d_sym distances between all of the paper's 1,460 tasks take?

python -m benchmarks.distances [--tasks 1460] [--filters 8512] [--rounds 5]

Three ways in turn, round after round: a plain NumPy loop over pairs (a sample, extrapolated to all), the rows of torch
operations in float64 that the other kinds are computed with (a sample of rows, extrapolated) and `distance_matrix`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks._record import write_result
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
    error = float(np.abs(matrix.numpy()[sample[:, 0], sample[:, 1]] - expected).max())
    if error > TOLERANCE:
        raise SystemExit(f"distances: expected the loop's numbers to {TOLERANCE}, got {error:g} off; not timed.")

    rule, few = RULES["sym"], 8
    vectors = rule.prepare(Tasks(rows, torch.empty(0), [], ""))
    ways = {
        "NumPy loop": (lambda: numpy_loop(rows.numpy(), sample), pairs / len(sample)),
        "torch float64 rows": (
            lambda: row_distances(rule, vectors.row(0), vectors.rows(slice(1, 1 + few))),
            pairs / few,
        ),
        "native": (lambda: distance_matrix(rows), 1.0),
    }
    if torch.cuda.is_available():
        on_gpu = rows.cuda()
        distance_matrix(on_gpu)
        ways["native, GPU (result on the CPU)"] = (lambda: distance_matrix(on_gpu), 1.0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (call, times) in ways.items():
            start = perf_counter()
            call()
            seconds[name].append((perf_counter() - start) * times)
    report(options, error, seconds, {name: times for name, (_, times) in ways.items()})


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


def peak_bytes(T: int, K: int, threads: int) -> int | None:
    """Resident memory that `distance_matrix` adds to a fresh process that holds the embeddings (Linux)."""
    script = f"""
import re, torch
from pathlib import Path
from benchmarks.distances import embeddings
from task2vec_ext import distance_matrix
def status(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
torch.set_num_threads({threads})
rows = embeddings({T}, {K})
distance_matrix(rows[:2])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status("VmRSS")
distance_matrix(rows)
print(status("VmHWM") - before)
"""
    if not Path("/proc/self/clear_refs").exists():
        return None
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout)


def report(
    options: argparse.Namespace, error: float, seconds: dict[str, list[float]], extrapolated: dict[str, float]
) -> None:
    """Print the table and write the JSON."""
    loop = median(seconds["NumPy loop"])
    peak = peak_bytes(options.tasks, options.filters, options.threads)
    table = Table("way", "median s", "IQR s", "times the loop", title=f"{options.tasks} × {options.filters}")
    ways = {}
    for name, values in seconds.items():
        middle, (low, _, high) = median(values), quantiles(values, n=4)
        ways[name] = {
            "seconds": {"median": middle, "iqr": high - low, "n": len(values)},
            "times_the_loop": loop / middle,
            "extrapolated_by": extrapolated[name],
        }
        label = name + (" (extrapolated)" if extrapolated[name] != 1 else "")
        table.add_row(label, f"{middle:.3g}", f"{high - low:.2g}", f"{loop / middle:.3g}")
    console = Console()
    console.print(table)
    console.print(f"largest error against the loop {error:.1e}; native peak beyond the input {peak} bytes")
    result = {"tasks": options.tasks, "filters": options.filters, "threads": options.threads, "max_error": error}
    console.print(str(write_result("distances", {**result, "peak_bytes_beyond_input": peak, "ways": ways})))


if __name__ == "__main__":
    main()
