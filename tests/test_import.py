import subprocess
import sys


def test_importing_the_package_is_light(tmp_path):
    heavy = ("torchvision", "matplotlib", "scipy", "sklearn", "rich", "typer", "pandas", "pyarrow", "datasets")
    program = f"import sys, task2vec_ext; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_everything_public_has_a_docstring_and_is_importable():
    import task2vec_ext

    for name in task2vec_ext.__all__:
        assert getattr(task2vec_ext, name).__doc__, name


def test_the_source_tree_without_a_build_says_how_to_install(tmp_path):
    import shutil
    from pathlib import Path

    import task2vec_ext

    shutil.copytree(
        Path(task2vec_ext.__file__).parent, tmp_path / "task2vec_ext", ignore=shutil.ignore_patterns("*.so")
    )
    # -S -P: neither an installed package nor an editable install may help out.
    program = (
        f"import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in type(f).__name__ "
        f"and 'ScikitBuild' not in type(f).__name__]; sys.path.insert(0, {str(tmp_path)!r}); import task2vec_ext"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install -e ." in done.stderr.splitlines()[-1]
