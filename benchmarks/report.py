"""Write the table of speed and memory in docs/measurements.md from the JSON in benchmarks/results/.

    python benchmarks/report.py [--check]

Each row is a claim: its target, what was measured, and the command. A row without a record says "not measured".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from _record import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "measurements.md"
BEGIN, END = "<!-- performance -->", "<!-- /performance -->"
RENAMED = {"coverage": "interval_coverage", "operator": "filter_grad_sq"}
"""Modules of version 0.1, in whose records ``python -m benchmarks.NAME`` is the command."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One claim."""

    question: str
    hardware: Literal["CPU", "H100"]
    benchmark: str
    value: Callable[[Record], float | None]
    """Takes it from a record's ``result``; None or a KeyError if it was not measured."""
    sign: Literal["≤", "≥"]
    limit: float
    text: Callable[[float], str] = "{:.2f}".format
    settings: dict[str, Any] = field(default_factory=dict)
    """What a record's ``result`` must hold: other networks or sizes answer another question."""

    @property
    def target(self) -> str:
        """Return the target as text."""
        return f"{self.sign} {self.text(self.limit)}"

    def met(self, value: float) -> bool:
        """Return whether a figure reaches the target."""
        return value <= self.limit if self.sign == "≤" else value >= self.limit


def _pass(arch: str, precision: str, *path: str) -> Callable[[Record], float | None]:
    def value(result: Record) -> float | None:
        for row in result["rows"]:
            if (row["arch"], row["precision"]) == (arch, precision):
                return _at(row, *path)
        return None

    return value


def _peer(name: str) -> Callable[[Record], float | None]:
    return lambda result: _at(result, "ways", name, "time_to_ours", "median")


def _field(*path: str) -> Callable[[Record], float | None]:
    return lambda result: _at(result, *path)


def _at(record: Any, *path: str) -> Any:
    for key in path:
        record = record[key]
    return record


def _direct_share(result: Record) -> float | None:
    return next((t["direct_share_of_ceiling"] for t in result["precisions"] if t["precision"] == "bf16"), None)


_TIMES, _PERCENT = "{:.1f}×".format, "{:.0%}".format
_RATIO = ("time_ratio", "median")
_PASS: dict[str, Any] = {"batch_size": 16, "size": 224}
_GPU_PASS: dict[str, Any] = {"batch_size": 256, "size": 224}
_PEERS: dict[str, Any] = {"arch": "resnet34", "device": "cpu", **_PASS}
_EMBED: dict[str, Any] = {"arch": "resnet34", "device": "cpu", "images": 512, "size": 224}
_PHOTOS: dict[str, Any] = {"arch": "resnet34", "device": "cpu", "size": 224}


def _gpu_pass(arch: str, name: str, precision: str) -> Row:
    question = f"Fisher pass ÷ plain step, {name}, batch 256, {precision}"
    return Row(question, "H100", "fisher_pass", _pass(arch, precision, *_RATIO), "≤", 0.80, settings=_GPU_PASS)


def _cpu_pass(arch: str, question: str, limit: float, *path: str) -> Row:
    return Row(question, "CPU", "fisher_pass", _pass(arch, "fp32", *path), "≤", limit, settings=_PASS)


def _faster(name: str, package: str, limit: float) -> Row:
    return Row(f"faster than {name}", "CPU", "peers", _peer(package), "≥", limit, _TIMES, _PEERS)


def _noisy(hardware: Literal["CPU", "H100"], question: str, other: str, limit: float) -> Row:
    value = _field("ratios", f"activations ÷ {other}", "median")
    return Row(question, hardware, "variational", value, "≤", limit, settings={"arch": "resnet34", "size": 224})


_NUMPY_RATIO, _DISTANCE_BYTES = ("ways", "native", "times_the_loop"), ("peak_bytes_beyond_input",)
_DISTANCE_SECONDS = ("ways", "native, GPU (result on the CPU)", "seconds", "median")

ROWS = [
    _cpu_pass("resnet34", "Fisher pass ÷ plain step, ResNet-34, batch 16", 0.75, *_RATIO),
    _cpu_pass("resnet34", "its peak memory ÷ the plain step's", 1.10, "memory_ratio"),
    _cpu_pass("resnet50", "Fisher pass ÷ plain step, ResNet-50, batch 16", 0.85, *_RATIO),
    _cpu_pass("resnet18", "Fisher pass ÷ plain step, ResNet-18, batch 16", 0.85, *_RATIO),
    _faster("torch.func vmap(grad)", "vmap", 2.7),
    _faster("Opacus", "opacus", 3.7),
    _faster("BackPACK", "backpack", 12),
    Row("`fisher_embed` of 512 images ÷ plain steps", "CPU", "end_to_end", _field(*_RATIO), "≤", 1.0, settings=_EMBED),
    Row("d_sym of all pairs, faster than NumPy", "CPU", "distances", _field(*_NUMPY_RATIO), "≥", 100, "{:.0f}×".format),
    Row("its peak memory", "CPU", "distances", _field(*_DISTANCE_BYTES), "≤", 300e6, lambda v: f"{v / 1e6:.0f} MB"),
    Row("time waiting for images", "CPU", "inaturalist", _field("waiting_share"), "≤", 0.10, _PERCENT, _PHOTOS),
    _noisy("CPU", "variational step ÷ plain step", "plain", 0.95),
    _noisy("CPU", "variational step ÷ the authors' two convolutions", "authors", 0.5),
    _gpu_pass("resnet34", "ResNet-34", "tf32"),
    _gpu_pass("resnet34", "ResNet-34", "bf16"),
    _gpu_pass("resnet50", "ResNet-50", "tf32"),
    _gpu_pass("resnet50", "ResNet-50", "bf16"),
    Row("direct route ÷ a matrix product's speed, bf16", "H100", "filter_grad_sq", _direct_share, "≥", 0.5, _PERCENT),
    _noisy("H100", "variational step ÷ plain step", "plain", 0.95),
    _noisy("H100", "variational step ÷ the authors' two convolutions", "authors", 0.5),
    Row("`local_noise` ÷ a copy's GB/s", "H100", "variational", _field("local_noise", "share"), "≥", 0.7, _PERCENT),
    Row(
        "d_sym of all pairs", "H100", "distances", _field(*_DISTANCE_SECONDS), "≤", 0.01, lambda v: f"{1e3 * v:.1f} ms"
    ),
]


def main() -> None:
    """Write the table, or check that it is up to date."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="write nothing; fail if page and records disagree")
    options = arguments.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = with_table(before, table(RESULTS))
    if options.check and before != after:
        sys.exit(f"report: {PAGE.name} and benchmarks/results/ disagree; run python benchmarks/report.py.")
    if before != after:
        PAGE.write_text(after, encoding="utf-8")


def with_table(page: str, table: str) -> str:
    """Return the page with the table between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"report: expected the markers {BEGIN} and {END} in {PAGE.name}, one is missing; put them back.")
    return f"{before}{begin}\n{table}\n{end}{after}"


def table(results: Path) -> str:
    """Return the table in Markdown, followed by the machine and versions of its figures."""
    lines = ["| on | question | target | measured | command |", "|---|---|---|---|---|"]
    sources: dict[str, int] = {}
    for row in ROWS:
        measured, run = "not measured", f"python benchmarks/{row.benchmark}.py"
        found = _find(results, row)
        if found is not None:
            record, value = found
            number = sources.setdefault(source(record), len(sources) + 1)
            measured = f"{row.text(value)}{'' if row.met(value) else ' (missed)'} [{number}]"
            run = command(record)
        lines.append(f"| {row.hardware} | {row.question} | {row.target} | {measured} | `{run}` |")
    if sources:
        lines += ["", *(f"[{number}] {source}  " for source, number in sources.items())]
    return "\n".join(lines)


def _find(results: Path, row: Row) -> tuple[Record, float] | None:
    """Return a row's record and value, from the first folder of its hardware that has them."""
    for folder in _folders(results, row.hardware):
        file = folder / f"{row.benchmark}.json"
        if not file.is_file():
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        result = record["result"]
        if any(result.get(name) != setting for name, setting in row.settings.items()):
            continue
        try:
            value = row.value(result)
        except KeyError:  # a way failed, or a network was not asked for
            continue
        if value is not None:
            return record, value
    return None


def _folders(results: Path, hardware: str) -> Iterator[Path]:
    for folder in sorted(results.glob("*/")):
        if folder.name.startswith("cpu-") if hardware == "CPU" else hardware in folder.name:
            yield folder


def command(record: Record) -> str:
    """Return the command that makes a record today."""
    return re.sub(
        r"^python -m benchmarks\.(\w+)",
        lambda found: f"python benchmarks/{RENAMED.get(found[1], found[1])}.py",
        record["command"].replace("how_many_pictures", "how_many_images"),
    )


def source(record: Record) -> str:
    """Return hardware, versions and commit of a record in one line."""
    hardware, versions = record["hardware"], record["versions"]
    machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware.get('threads', hardware['cores'])} threads"
    commit = (record["commit"] or "unknown")[:9]
    return f"{machine}; torch {versions['torch']}, Python {versions['python']}; commit {commit}"


if __name__ == "__main__":
    main()
