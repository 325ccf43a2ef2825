"""Every script of benchmarks/: names and imports."""

import ast
import importlib
import inspect
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


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
