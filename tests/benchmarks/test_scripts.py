"""Every script of benchmarks/: from any folder, by public names."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
TINY = "--tasks 60 --filters 40 --rounds 2"


@pytest.mark.slow
def test_a_script_runs_from_any_folder_and_writes_its_record(tmp_path):
    """The fastest of them; test_gpu_script.py runs most, from the clone."""
    results = tmp_path / "results"
    ran = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "distances.py", *TINY.split()],
        cwd=tmp_path,
        env={**os.environ, "TASK2VEC_RESULTS": str(results), "TASK2VEC_COMMIT": "abc"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    (file,) = results.glob("*/*.*")
    record = json.loads(file.read_text())
    assert file.name == "distances.json"
    assert ran.stdout.endswith(f"{file}\n")
    assert record["commit"] == "abc"
    assert record["command"] == f"python benchmarks/distances.py {TINY}"


def test_no_script_hides_another_module():
    taken = sys.stdlib_module_names | packages_distributions().keys() | set(sys.builtin_module_names)
    assert set(SCRIPTS) & taken == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_public_names_alone(script):
    module = importlib.import_module(script)
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module.startswith("task2vec_ext")]
    names = [name for node in ours for name in (*node.module.split("."), *(alias.name for alias in node.names))]
    assert [name for name in names if name.startswith("_")] == []
