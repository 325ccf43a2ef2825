"""benchmarks/gpu.sh: its steps run on the CPU, on tiny networks, and their estimates fit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def rehearse(tmp_path, *options, **variables):
    environment = {**os.environ, "TASK2VEC_RESULTS": str(tmp_path), "PYTHON": sys.executable, **variables}
    return subprocess.run(["bash", SCRIPT, *options], env=environment, capture_output=True, text=True, timeout=3600)


@pytest.mark.slow
def test_every_command_runs_on_the_cpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a rehearsal without a GPU")
    ran = rehearse(tmp_path, "--dry-run", TASK2VEC_COMMIT="abc")
    log = (tmp_path / "gpu.log").read_text()
    assert ran.returncode == 0, ran.stdout + ran.stderr + log
    lines = re.findall(r"^(.*?) +\d+s of ~ *\d+s  (.*)$", ran.stdout.split("results and gpu.log")[1], re.MULTILINE)
    assert [name.strip() for name, _ in lines] == [
        "CUDA tests",
        "racecheck",
        "fisher_pass resnet50 bf16",
        "filter_grad_sq",
        "distances",
        "variational",
        "end_to_end",
        "inaturalist",
    ]
    assert {outcome for _, outcome in lines} == {"ok"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) <= 8
    records = {path.stem: json.loads(path.read_text()) for path in files if path.suffix == ".json"}
    assert set(records) == {"fisher_pass", "filter_grad_sq", "distances", "variational", "end_to_end", "inaturalist"}
    assert {record["commit"] for record in records.values()} == {"abc"}
    assert all(f"\n{path}\n" in log for path in files if path.suffix == ".json")
    assert all(record["command"].startswith(f"python benchmarks/{stem}.py --") for stem, record in records.items())
    of_all, of_racecheck = map(int, re.findall(r"(\d+)(?:/\d+)? tests collected", log))
    assert 20 <= of_racecheck <= 40 < of_all


def test_the_estimates_fit_into_eight_minutes():
    script = SCRIPT.read_text(encoding="utf-8")
    body = script[script.index("\nsteps() {") :]
    estimates = {}
    for name, estimate, limit in re.findall(r'^ +(?:step|benchmark) ("[^"]+"|\S+) (\d+) (\d+) ', body, re.MULTILINE):
        assert int(estimate) < int(limit)
        estimates[name] = int(estimate) * (4 if "$arch" in name else 1)  # two networks in two precisions
    assert len(estimates) == 9
    assert sum(estimates.values()) <= int(re.search(r"deadline=(\d+)", script)[1]) < 8 * 60


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ran = rehearse(tmp_path)
    assert ran.returncode == 2
    assert "gpu.sh: expected" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_other_options_are_refused(tmp_path):
    ran = rehearse(tmp_path, "--fast")
    assert (ran.returncode, ran.stderr) == (2, "gpu.sh: expected --dry-run or nothing, got --fast.\n")
