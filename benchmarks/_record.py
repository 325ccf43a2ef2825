"""Records: a result as JSON, with the hardware, versions, commit and command that made it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import task2vec_ext

RESULTS = Path(os.environ.get("TASK2VEC_RESULTS") or Path(__file__).with_name("results"))
PLACES = ("--before", "--cache", "--data", "--images", "--keep", "--root", "--spec", "--work")
"""Options whose values say where data lie on this machine: a record does not hold them."""


def results_folder() -> Path:
    """Return the folder for this machine's results, ``results/HARDWARE``; it is made if need be."""
    name = _gpu() or f"cpu-{platform.machine()}-{os.cpu_count()}-cores"
    folder = RESULTS / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_record(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/HARDWARE/NAME.json``, whole or not at all, and return its path.

    A benchmark with rows calls it after each of them: an interrupted run keeps the rows it has.
    """
    record = {**_made_by(name), "result": result}
    path = results_folder() / f"{name}.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def read_result(name: str) -> dict[str, Any]:
    """Return the result of this machine's record if the same commit and versions have made it, else {}."""
    path = results_folder() / f"{name}.json"
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(_made_by(name)))
    same = all(record[key] == now[key] for key in ("commit", "hardware", "versions"))
    return record["result"] if same else {}


def _made_by(name: str) -> dict[str, Any]:
    arguments = ["DIR" if before in PLACES else value for before, value in zip(sys.argv, sys.argv[1:], strict=False)]
    return {
        "benchmark": name,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "commit": _commit(),
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": _gpu(),
        },
        "versions": {
            "task2vec_ext": task2vec_ext.build_info()._asdict(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _commit() -> str | None:
    """TASK2VEC_COMMIT, else what git says of this folder, else None."""
    if commit := os.environ.get("TASK2VEC_COMMIT"):
        return commit
    with suppress(OSError):  # git is not installed
        here = Path(__file__).resolve().parent
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
        return git.stdout.strip() or None
    return None


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
