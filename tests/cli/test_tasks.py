import csv
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from command import run
from PIL import Image

from task2vec_ext import Embedding, cli, distance_matrix


def embed(capsys, folders, output, *options):
    return run(capsys, "embed", *folders, "-o", output, "--probe", "tiny", *options)


def test_embed_then_distances_then_info(capsys, folders, tmp_path):
    code, out, _ = embed(capsys, folders, tmp_path / "out")
    assert code == 0
    assert all(f"task{t}" in out for t in range(3))
    embeddings = [Embedding.load(tmp_path / "out" / f"task{t}.safetensors") for t in range(3)]
    assert [e.num_samples for e in embeddings] == [12, 12, 12]

    table, image = tmp_path / "matrix.csv", tmp_path / "matrix.png"
    code, out, _ = run(capsys, "distances", tmp_path / "out", "--distance", "asym", "--csv", table, "--png", image)
    assert code == 0
    assert str(table) in out
    with table.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["", "task0", "task1", "task2"]
    expected = distance_matrix(embeddings, "asym")
    torch.testing.assert_close(torch.tensor([[float(v) for v in row[1:]] for row in rows[1:]]).double(), expected)
    with Image.open(image) as image:
        assert min(image.size) > 200

    code, out, _ = run(capsys, "info", tmp_path / "out" / "task1.safetensors")
    assert code == 0
    assert "class0, class1" in out
    assert "layer4.0.conv2" in out
    low, high = re.search(r"norm, 95 %: (\S+) to (\S+)", out).groups()
    assert float(low) < embeddings[1].norm < float(high)


def test_interrupted_work_goes_on_where_it_stopped(capsys, folders, tmp_path):
    assert embed(capsys, folders[:2], tmp_path)[0] == 0
    first = (tmp_path / "task0.safetensors").stat().st_mtime_ns
    code, out, _ = embed(capsys, folders, tmp_path)
    assert code == 0
    assert "task2" in out
    assert (tmp_path / "task0.safetensors").stat().st_mtime_ns == first
    assert embed(capsys, folders, tmp_path, "--overwrite")[0] == 0
    assert (tmp_path / "task0.safetensors").stat().st_mtime_ns != first


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--seed", 3], "seed"),
        (["--weights", "random"], "probe"),
        (["--image-size", 40], "preprocess"),
        (["--estimator", "exact"], "estimator"),
        (["--num-samples", 6], "num_samples"),
    ],
)
def test_embeddings_of_other_settings_are_not_taken_for_these(capsys, folders, tmp_path, options, what):
    embed(capsys, folders[:1], tmp_path)
    # The second task is new: the misfit of the first is found before it costs any work.
    code, _, error = embed(capsys, [folders[1], folders[0]], tmp_path, *options)
    assert code == 1
    assert f"made with other settings ({what})" in error
    assert "--overwrite" in error
    assert not (tmp_path / "task1.safetensors").exists()


def test_unlabelled_images_are_embedded_by_their_clusters(capsys, folders, tmp_path):
    pytest.importorskip("sklearn")
    flat = folders[0] / "class0"
    assert embed(capsys, [flat], tmp_path, "--pseudo-labels", 2)[0] == 0
    result = Embedding.load(tmp_path / "class0.safetensors")
    assert (result.num_samples, result.head.num_outputs) == (6, 2)
    assert embed(capsys, [flat], tmp_path, "--pseudo-labels", 2)[0] == 0
    assert "made with other settings (loss)" in embed(capsys, [flat], tmp_path, "--pseudo-labels", 3)[2]


def test_a_folder_that_changed_is_not_taken_for_the_old_one(capsys, folders, tmp_path):
    import shutil

    task = shutil.copytree(folders[0], tmp_path / "task0")
    assert embed(capsys, [task], tmp_path / "out")[0] == 0
    (task / "class0" / "5.png").unlink()
    code, _, error = embed(capsys, [task], tmp_path / "out")
    assert code == 1
    assert "other settings (images)" in error


def test_options_reach_the_embedding(capsys, folders, tmp_path):
    import shutil

    task = shutil.copytree(folders[0], tmp_path / "task0")
    (task / "class0" / "0.png").write_bytes(b"broken")
    assert embed(capsys, [task], tmp_path / "out")[0] == 1
    assert embed(capsys, [task], tmp_path / "out", "--skip-unreadable", "--estimator", "exact")[0] == 0
    result = Embedding.load(tmp_path / "out" / "task0.safetensors")
    assert (result.num_samples, result.num_skipped, result.recipe["estimator"]) == (11, 1, "exact")
    assert embed(capsys, folders[1:2], tmp_path / "out", "--num-samples", 6)[0] == 0
    assert Embedding.load(tmp_path / "out" / "task1.safetensors").num_samples == 6


def test_alpha_reaches_the_distance(capsys, folders, tmp_path):
    embed(capsys, folders[:2], tmp_path)
    run(capsys, "distances", tmp_path, "--distance", "asym", "--alpha", 0, "--csv", tmp_path / "m.csv")
    with (tmp_path / "m.csv").open() as file:
        assert [row[i + 1] for i, row in enumerate(list(csv.reader(file))[1:])] == ["0.0", "0.0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "missing.safetensors"], "missing.safetensors"),
        (["distances", "."], "two or more embeddings"),
        (["embed", "nowhere", "-o", "out"], "nowhere"),
        (["embed", ".", "-o", "out", "--probe", "resnet35"], "expected"),
    ],
)
def test_errors_are_one_line_on_standard_error(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, error = run(capsys, *arguments)
    assert code == 1
    assert out == ""
    assert error.startswith("task2vec: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["task2vec", "info", "missing", "--debug"])
    with pytest.raises(ValueError, match="missing"):
        cli.main()


def test_wrong_usage_exits_with_2(capsys):
    assert run(capsys, "embed")[0] == 2
    assert run(capsys, "distances", ".", "--kind", "euclid")[0] == 2
    assert run(capsys, "fly")[0] == 2


def test_two_folders_of_one_name_are_refused_before_any_work(capsys, folders, tmp_path):
    twin = tmp_path / "task0"
    twin.symlink_to(folders[1], target_is_directory=True)
    other = tmp_path / "elsewhere" / "task1"
    other.parent.mkdir()
    other.symlink_to(folders[0], target_is_directory=True)
    code, _, error = embed(capsys, [folders[0], other], tmp_path / "out")
    assert code == 1
    assert "a name of its own" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_found_out_first(capsys, folders, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = embed(capsys, folders, tmp_path / "file")
    assert code == 1
    assert "cannot write into" in error


def test_help_and_version(capsys):
    for arguments in ([], ["--help"], ["embed", "--help"]):
        code, out, error = run(capsys, *arguments)
        assert code == (0 if arguments else 2)
        assert "Usage: task2vec" in (out if arguments else error)
    assert run(capsys, "--version")[1].startswith("task2vec_ext ")


def test_the_module_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "task2vec_ext", "info", "missing"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # not the source tree, which may be without its native module
    )
    assert done.returncode == 1
    assert done.stderr.startswith("task2vec: error: ")


def test_ctrl_c_exits_with_130_and_leaves_no_file_behind(folders, tmp_path):
    program = (
        "import sys, task2vec_ext.fisher.per_sample as f\n"
        "def interrupted(*a, **k): raise KeyboardInterrupt\n"
        "f.per_sample_fisher = interrupted\n"
        "from task2vec_ext.cli import main; main()\n"
    )
    arguments = ["embed", str(folders[0]), "-o", str(tmp_path), "--probe", "tiny"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_utf8_can_be_embedded_and_shown(folders, tmp_path):
    """In a process of its own, with the strict output that most languages' settings give."""
    task = tmp_path / os.fsdecode(b"pets\xff")
    try:
        shutil.copytree(folders[0], task)
    except OSError:
        pytest.skip("the file system takes only UTF-8 names")
    done = subprocess.run(
        [sys.executable, "-m", "task2vec_ext", "embed", task, "-o", tmp_path / "out", "--probe", "tiny"],
        capture_output=True,
        check=False,
        cwd=tmp_path,  # the sources would hide what was installed
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"pets\\udcff" in done.stdout
