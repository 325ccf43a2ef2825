"""What every result carries: hardware, versions, commit, command."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import task2vec_ext
from task2vec_ext._util.atomic import atomic_path

RESULTS = Path(os.environ.get("TASK2VEC_RESULTS") or Path(__file__).with_name("results"))


def hardware() -> str:
    """Name of the folder results of this machine go to."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "-")
    return f"cpu-{platform.machine()}-{os.cpu_count()}-cores"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/HARDWARE/name.json`` and return its path."""
    here = Path(__file__).resolve().parent  # whatever folder the command was given in
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    commit = git.stdout.strip()
    record = {
        "benchmark": name,
        "command": " ".join(["python", "-m", _module() or f"benchmarks.{name}", *_arguments()]),
        "commit": commit or None,
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": hardware() if torch.cuda.is_available() else None,
        },
        "versions": {
            "task2vec_ext": task2vec_ext.build_info()._asdict(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "result": result,
    }
    path = RESULTS / hardware() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _module() -> str | None:
    """What was started; one module may write several records."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None and spec.name.startswith("benchmarks.") else None


def _arguments() -> list[str]:
    """The command's arguments, without where the data lies on this machine."""
    places = ("--data", "--root", "--cache", "--work", "--spec")
    return ["DIR" if before in places else value for before, value in zip(sys.argv, sys.argv[1:], strict=False)]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
