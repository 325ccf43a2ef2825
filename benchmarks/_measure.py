"""Comparable times, the memory one step takes, and a table of both."""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

Step = Callable[[], object]


def parser(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark of speed has."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    arguments.add_argument("--repeats", type=int, default=repeats, help="rounds of A B A B …")
    return arguments


def interleave(
    ways: Mapping[str, Step],
    repeats: int,
    device: str,
    *,
    budget: float = float("inf"),
    before: Step | None = None,
    clock: Callable[[Step, str], float] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of every run of every way, in turns (A B A B …), so that a slow spell hits all alike.

    Args:
        ways: What to time; the caller has run each once, to warm up.
        repeats: Number of rounds.
        device: Synchronised before the clock is read.
        budget: Seconds after which a way is left out of further rounds.
        before: Run before each way, untimed (say, to empty the caches).
        clock: Returns the seconds of one run; default: `seconds_of`.
    """
    clock = clock or seconds_of
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, step in ways.items():
            if sum(seconds[name]) > budget:
                continue
            if before is not None:
                before()
            seconds[name].append(clock(step, device))
    return seconds


def seconds_of(step: Step, device: str) -> float:
    """Return the seconds of one run, until the device has finished."""
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - started


def gpu_seconds_of(step: Step, device: str) -> float:
    """Return the seconds that the GPU takes for one run, by events in its own stream: without the host's work.

    That holds where the host is ahead: for a `captured` graph, or after work that keeps the GPU busy meanwhile.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def captured(step: Step) -> Step | None:
    """Return the replay of a CUDA graph of one run, launched at once; None if the step cannot be captured."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # libraries set themselves up in a first run
        torch.cuda.synchronize()
        try:
            graph.capture_begin()  # torch.cuda.graph would also collect garbage, each time
            try:
                step()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            print(f"not captured as a CUDA graph, timed by events alone: {error}", file=sys.stderr)
            return None
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


def host_seconds_of(step: Step, device: str, calls: int = 10) -> float:
    """Return the seconds of the host's own work in one run: until the call returns, while the GPU may go on."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        step()
    seconds = (time.perf_counter() - started) / calls
    synchronize(device)
    return seconds


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles and number of the values."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": median(values), "quartiles": [low, high], "n": len(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return the summary of ours ÷ theirs, round by round."""
    return summary([a / b for a, b in zip(ours, theirs, strict=False)])


def peak_memory(build: Callable[..., Step], *args: Any, device: str) -> int:
    """Return the bytes one run of ``build(*args)`` takes at its peak, beyond what was there before it.

    On the CPU it runs in a fresh process: memory that earlier work had freed would hide it.
    """
    if device.startswith("cuda"):
        step = build(*args)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_rss, torch.get_num_threads(), build, args).result()


def _peak_rss(threads: int, build: Callable[..., Step], args: tuple[Any, ...]) -> int:
    """Peak resident set of one step beyond that before it, bytes (Linux)."""
    torch.set_num_threads(threads)
    step = build(*args)
    gc.collect()
    with suppress(OSError, AttributeError):  # the step could reuse pages that set-up has freed and glibc has kept
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def say(what: str) -> None:
    """Show progress, if stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"{what} …", file=sys.stderr)


def check(what: str, error: float, limit: float) -> float:
    """Return the error, or stop the benchmark: a wrong result is not timed."""
    if not error <= limit:  # NaN too
        raise SystemExit(
            f"{what}: expected an error to the reference of at most {limit:g}, got {error:g}; nothing timed."
        )
    return error


def stop_if(failed: Sequence[str]) -> None:
    """End the benchmark with status 1 and what failed, if anything did."""
    if failed:
        raise SystemExit("\n".join(failed))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under a title; numbers to three digits, right-aligned."""
    table = Table()
    rows = [[_cell(value) for value in row] for row in rows]
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console() if Console().is_terminal else Console(width=140)
    console.print(title, markup=False, highlight=False)
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
