import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import task2vec_ext


def test_the_package_exports_what_it_imports():
    assert {"fisher_embed", "distance_matrix"} <= {*task2vec_ext.__all__} <= {*dir(task2vec_ext)}
    assert not hasattr(task2vec_ext, "fisher_embedding")


@pytest.mark.parametrize(
    ("arguments", "completed"),
    [
        (["--help"], None),
        (["embed", "--help"], None),
        (["task2vec em"], "embed"),
        (["task2vec embed --est"], "--estimator"),
        (["task2vec plot x --distance asym_"], "asym_scaled"),
        (["task2vec select ev"], "evaluate"),
    ],
)
def test_help_and_completion_do_not_wait_for_torch(arguments, completed, tmp_path):
    environment = dict(os.environ)
    if completed:
        (words,) = arguments
        environment |= {"_TASK2VEC_COMPLETE": "complete_bash", "COMP_WORDS": words}
        environment |= {"COMP_CWORD": str(len(words.split()) - 1)}
    program = (
        f"import sys; from task2vec_ext import cli; sys.argv = {['task2vec', *([] if completed else arguments)]}\n"
        "try: cli.main()\nfinally: print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert (completed or "Usage: task2vec") in done.stdout


def test_importing_the_package_is_light_and_a_first_embedding_does_not_wait_for_torchs_compiler(folders, tmp_path):
    """On the CPU torch imports it, and sympy, only to keep it away from an optimizer or to compare two shapes."""
    heavy = {"torchvision", "matplotlib", "scipy", "sklearn", "rich", "typer", "pandas", "pyarrow", "datasets"}
    program = (
        "import sys, torch; before = {*sys.modules}; from task2vec_ext import fisher_embed; "
        f"print({heavy} & {{*sys.modules}}); "
        f"fisher_embed({str(folders[0])!r}, probe='tiny', num_samples=4, device='cpu'); "
        "print({'sympy', 'torch._dynamo', 'torchvision'} & ({*sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split("\n") == ["set()", "set()", ""]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists what is loaded")
@pytest.mark.parametrize("first", ["torch", "task2vec_ext"])
def test_one_openmp_runtime_serves_torch_and_the_kernels(first, tmp_path):
    program = (
        f"import {first}, torch; from task2vec_ext import distance_matrix; distance_matrix(torch.rand(8, 64)); "
        "lines = open('/proc/self/maps').read().splitlines(); "
        "print(*{line.split()[-1] for line in lines if any(omp in line for omp in ('libgomp', 'libomp', 'libiomp'))})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert len(done.stdout.split()) == 1, done.stdout


def test_everything_public_has_a_docstring_and_is_importable():
    for name in task2vec_ext.__all__:
        assert getattr(task2vec_ext, name).__doc__, name


def test_the_source_tree_without_a_build_says_how_to_install(tmp_path):
    shutil.copytree(
        Path(task2vec_ext.__file__).parent, tmp_path / "task2vec_ext", ignore=shutil.ignore_patterns("*.so")
    )
    # -S -P: neither an installed package nor an editable install may help out.
    program = (
        f"import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in type(f).__name__ "
        f"and 'ScikitBuild' not in type(f).__name__]; sys.path.insert(0, {str(tmp_path)!r}); "
        "from task2vec_ext import fisher_embed"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install -e ." in done.stderr.splitlines()[-1]
