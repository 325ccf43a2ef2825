import csv
import os
import re
import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from command import run
from PIL import Image

from task2vec_ext import Library, Task2VecWarning, cli, distance_matrix, load_embeddings
from task2vec_ext._util.interrupt import quiet_interrupt
from task2vec_ext.cli.options import as_options, at_home


def embed(capsys, folders, output, *options):
    return run(capsys, "embed", *folders, "-o", output, "--probe", "tiny", *options)


def file_of(folder, name):
    (entry,) = [entry for entry in Library(folder).entries() if entry.name == name]
    return Library(folder).file(entry)


def test_embed_then_distances_then_info(capsys, folders, tmp_path):
    code, out, _ = embed(capsys, folders, tmp_path / "out")
    assert code == 0
    assert all(f"task{t}" in out for t in range(3))
    embeddings = list(load_embeddings(tmp_path / "out"))
    assert [e.num_samples for e in embeddings] == [12, 12, 12]

    table, plot = tmp_path / "matrix.csv", tmp_path / "matrix.png"
    code, out, _ = run(capsys, "distances", tmp_path / "out", "--distance", "asym", "--csv", table, "--png", plot)
    assert code == 0
    assert str(table) in out
    with table.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["", "task0", "task1", "task2"]
    expected = distance_matrix(embeddings, "asym")
    torch.testing.assert_close(torch.tensor([[float(v) for v in row[1:]] for row in rows[1:]]).double(), expected)
    with Image.open(plot) as image:
        assert min(image.size) > 200

    code, out, _ = run(capsys, "info", file_of(tmp_path / "out", "task1"))
    assert code == 0
    assert "class0, class1" in out
    assert "layer4.0.conv2" in out
    low, high = re.search(r"norm, 95 %: (\S+) to (\S+)", out).groups()
    assert float(low) < embeddings[1].norm < float(high)


def test_decoded_images_are_kept_where_the_options_say(capsys, folders, tmp_path):
    kept, norms = tmp_path / "kept", []
    ways = (["--image-cache", "off"], ["--cache-memory", 0, "--cache-disk", 0.001], ["--image-cache", kept])
    for number, way in enumerate(ways):
        assert embed(capsys, folders[:1], tmp_path / f"library{number}", *way)[0] == 0
        norms += [e.norm for e in load_embeddings(tmp_path / f"library{number}")]
    assert len(set(norms)) == 1
    assert {file.suffix for file in kept.iterdir()} == {".crops"}
    code, _, err = embed(capsys, folders[:1], tmp_path / "drafts", "--decoder", "draught")
    assert code == 2
    assert "draft" in err


def test_interrupted_work_goes_on_where_it_stopped(capsys, folders, tmp_path):
    assert embed(capsys, folders[:2], tmp_path)[0] == 0
    first = file_of(tmp_path, "task0").stat().st_mtime_ns
    code, out, _ = embed(capsys, folders, tmp_path)
    assert code == 0
    assert "task2" in out
    assert file_of(tmp_path, "task0").stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--seed", 3], "seed: 0 against 3"),
        (["--weights", "random"], "probe: "),
        (["--image-size", 40], "preprocess crop: 48 against 40"),
        (["--estimator", "exact"], "estimator: signed against exact"),
        (["--num-samples", 6], "num_samples: None against 6"),
    ],
)
def test_embeddings_of_other_settings_are_not_taken_for_these(capsys, folders, tmp_path, options, what):
    embed(capsys, folders[:1], tmp_path)
    # The second task is new: the misfit of the first is found before it costs any work.
    code, _, error = embed(capsys, [folders[1], folders[0]], tmp_path, *options)
    assert code == 1
    assert "got others (there against here): " in error
    assert what in error
    assert Library(tmp_path).names() == ["task0"]


def test_unlabelled_images_are_embedded_by_their_clusters(capsys, folders, tmp_path):
    pytest.importorskip("sklearn")
    flat = folders[0] / "class0"
    assert embed(capsys, [flat], tmp_path, "--pseudo-labels", 2)[0] == 0
    result = Library(tmp_path).embedding("class0")
    assert (result.num_samples, result.head.num_outputs) == (6, 2)
    assert embed(capsys, [flat], tmp_path, "--pseudo-labels", 2)[0] == 0
    assert "loss num_clusters: 2 against 3" in embed(capsys, [flat], tmp_path, "--pseudo-labels", 3)[2]


def test_what_is_kept_is_said_and_replaced_images_are_embedded_again(capsys, folders, tmp_path):
    tasks = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders[:2]]
    code, out, _ = embed(capsys, tasks, tmp_path / "out")
    assert code == 0
    assert out.rstrip().endswith(f"2 of 2 tasks are embedded in {tmp_path / 'out'}")
    before = Library(tmp_path / "out").embedding("task0")
    for file in (tasks[0] / "class0").iterdir():
        shutil.copy(folders[2] / "class1" / file.name, file)
    with pytest.warns(Task2VecWarning, match="embedding 'task0' again, whose images were replaced"):
        code, out, _ = embed(capsys, tasks, tmp_path / "out")
    assert code == 0
    assert "2 of 2 tasks are embedded" in out
    assert "1 of them kept from before" in out
    assert re.findall(r"^ *(task\d) +(\w+)", out, re.MULTILINE) == [("task0", "done"), ("task1", "kept")]
    assert not torch.equal(Library(tmp_path / "out").embedding("task0").fisher, before.fisher)
    assert Library(tmp_path / "out").verify() == []


def test_tasks_are_named_on_the_command_line(capsys, folders, tmp_path):
    code, _, _ = embed(capsys, [f"mine={folders[0]}", f"yours={folders[0]}"], tmp_path / "out")
    assert code == 0
    assert Library(tmp_path / "out").names() == ["mine", "yours"]


def test_a_folder_that_changed_is_not_taken_for_the_old_one(capsys, folders, tmp_path):
    task = shutil.copytree(folders[0], tmp_path / "task0")
    assert embed(capsys, [task], tmp_path / "out")[0] == 0
    (task / "class0" / "5.png").unlink()
    code, _, error = embed(capsys, [task], tmp_path / "out")
    assert code == 1
    assert "expected the images that were embedded, got others for 'task0'" in error


def test_options_reach_the_embedding(capsys, folders, tmp_path):
    task = shutil.copytree(folders[0], tmp_path / "task0")
    (task / "class0" / "0.png").write_bytes(b"broken")
    options = ("--estimator", "exact", "--num-samples", 6)
    code, out, _ = embed(capsys, [task], tmp_path / "out", *options)
    assert code == 1
    assert "1 failed" in out
    with pytest.warns(Task2VecWarning, match="left out 1 of"):
        assert embed(capsys, [task], tmp_path / "out", *options, "--skip-unreadable", "--retry-failed")[0] == 0
    result = Library(tmp_path / "out").embedding("task0")
    assert result.num_samples + result.num_skipped == 6
    assert (result.settings.estimator, result.settings.num_samples) == ("exact", 6)


def test_alpha_reaches_the_distance(capsys, folders, tmp_path):
    embed(capsys, folders[:2], tmp_path)
    run(capsys, "distances", tmp_path, "--distance", "asym", "--alpha", 0, "--csv", tmp_path / "m.csv")
    with (tmp_path / "m.csv").open() as file:
        assert [row[i + 1] for i, row in enumerate(list(csv.reader(file))[1:])] == ["0.0", "0.0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "missing.safetensors"], "missing.safetensors"),
        (["distances", "."], "expected a library or embeddings"),
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
    assert run(capsys, "distances", ".", "--distance", "euclid")[0] == 2
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


def test_ctrl_c_exits_with_130_and_leaves_no_file_behind(capsys, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("task2vec_ext.fisher.per_sample.per_sample_fisher", Mock(side_effect=KeyboardInterrupt))
    code, _, error = embed(capsys, folders[:1], tmp_path)
    assert code == 130, error
    assert "Traceback" not in error
    assert f"interrupted; what is embedded is kept in {tmp_path}: the same command continues" in error
    assert list(tmp_path.glob("embeddings/*")) == []


def test_ctrl_c_while_the_program_starts_is_one_line(capsys, monkeypatch):
    class EndedError(Exception):
        pass

    def imports():
        with quiet_interrupt():
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "_exit", Mock(side_effect=EndedError))
    for argv, orig_argv in (
        (["/bin/task2vec", "demo"], ["python"]),
        (["-m"], ["python", "-m", "task2vec_ext", "demo"]),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", orig_argv)
        with pytest.raises(EndedError):
            imports()
        os._exit.assert_called_with(130)
        assert capsys.readouterr().err == "\ntask2vec: interrupted; nothing was written\n"
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "notebook.py"])
    with pytest.raises(KeyboardInterrupt):
        imports()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("~/x", "/me/x"),
        ("~", "/me"),
        ("--output=~/x", "--output=/me/x"),
        ("table:~/x.csv", "table:/me/x.csv"),
        ("a~/b", "a~/b"),
    ],
)
def test_home_is_where_a_shell_leaves_a_tilde(monkeypatch, argument, expected):
    monkeypatch.setenv("HOME", "/me")
    assert at_home(argument) == expected
    with pytest.raises(ValueError, match="/me/none"):
        Library("~/none")


def test_messages_have_the_options_of_the_command_line_and_paths(capsys, folders, tmp_path):
    said = 'image 3: broken. Or pass on_error="skip" (on the command line --skip-unreadable) to go on without it.'
    assert as_options(said) == "image 3: broken. Or pass --skip-unreadable to go on without it."
    embed(capsys, folders[:1], tmp_path / "library")
    code, _, error = run(capsys, "atlas", tmp_path / "library", "--selection", tmp_path / "none.json")
    assert (code, error) == (1, f"task2vec: error: {tmp_path / 'none.json'}: No such file or directory\n")


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
    assert done.returncode == 0, done.stderr
    assert b"pets\\udcff" in done.stdout
