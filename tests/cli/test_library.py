import re
import shutil
from pathlib import Path

import pytest
from command import run
from PIL import Image

from task2vec_ext import Library, Task2VecWarning


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Three tasks of two classes, three images each; the last has one that is broken."""
    root = tmp_path_factory.mktemp("tasks")
    for t in range(3):
        for c in range(2):
            (root / f"task{t}" / f"class{c}").mkdir(parents=True)
            for i in range(3):
                Image.effect_noise((50 + t, 50), 20 + 60 * c).save(root / f"task{t}" / f"class{c}" / f"{i}.png")
    (root / "task2" / "class1" / "1.png").write_bytes(b"broken")
    return [root / f"task{t}" for t in range(3)]


def build(capsys, folders, output, *options):
    return run(capsys, "embed", *folders, "-o", output, "--probe", "tiny", *options)


def test_embed_status_ls_nearest_rm_verify(capsys, folders, tmp_path):
    output = tmp_path / "library"
    code, out, error = build(capsys, folders, output)
    assert code == 1
    assert "2 of 3 tasks are embedded" in out
    lines = error.splitlines()
    assert re.match(r"1 of 3 tasks, 6 of 18 images, \d:\d\d:\d\d, about \d:\d\d:\d\d left: task0 done$", lines[0])
    assert lines[2].startswith("3 of 3 tasks, 1 failed, 18 of 18 images")
    assert "class1/1.png" in run(capsys, "library", "ls", output, "--failed")[1]
    code, out, _ = run(capsys, "library", "status", output)
    assert code == 0
    assert re.search(r"done: 2\n +failed: 1\n +damaged: 0\n", out)

    with pytest.warns(Task2VecWarning, match=r"left out 1 of 6 images of 'task\d' .*class1/1.png"):
        code, out, error = build(capsys, folders, output, "--skip-unreadable", "--retry-failed", "--batch-size", 4)
    assert code == 0
    assert "3 of 3 tasks are embedded" in out
    assert len(error.splitlines()) == 1
    listed = run(capsys, "library", "ls", output)[1]
    assert all(re.search(rf"task{t} +done +6", listed) for t in range(3))

    code, out, _ = run(capsys, "nearest", "task1", "--library", output, "-k", 1)
    assert code == 0
    assert Library(output).nearest("task1", 1)[0].name in out
    file = Library(output).file(Library(output).entries()[0])
    found = run(capsys, "nearest", file, "--library", output, "--distance", "sym_scaled")[1]
    assert re.search(r"1 +task0 +0\.0000", found)

    assert run(capsys, "library", "verify", output)[:2] == (0, "3 embeddings, all sound\n")
    file.write_bytes(file.read_bytes()[:-1])
    code, out, _ = run(capsys, "library", "verify", output)
    assert code == 1
    assert f"{file.name}: " in out
    assert run(capsys, "library", "rm", output, "task1")[0] == 0
    assert Library(output).names() == ["task2"]


def test_mistakes_are_one_line(capsys, folders, tmp_path):
    for arguments, message in (
        (["library", "ls", tmp_path / "none"], "expected a library at"),
        (["nearest", "task0", "--library", tmp_path / "none"], "expected a library or embeddings"),
        (["embed", folders[0], folders[0], "-o", tmp_path / "out", "--probe", "tiny"], "more than once"),
        (
            ["embed", folders[0], "-o", tmp_path / "out", "--part", "5/4"],
            "K from 0 to N-1, such as 0/4 to 3/4; got",
        ),
        (["embed", folders[0], "-o", tmp_path / "out", "--part", "one"], "expected --part K/N"),
        (["embed", tmp_path / "none", "-o", tmp_path / "out", "--probe", "tiny"], "nothing there"),
    ):
        code, out, error = run(capsys, *arguments)
        assert (code, out) == (1, "")
        assert error.startswith("task2vec: error: ")
        assert error.count("\n") == 1
        assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_name_is_no_utf_8_is_listed(capsys, folders, tmp_path):
    odd = shutil.copytree(folders[0], tmp_path / "odd\udcff")
    build(capsys, [odd, folders[1]], tmp_path / "library")
    assert "odd\\udcff" in run(capsys, "library", "ls", tmp_path / "library")[1]
    code, out, error = run(capsys, "nearest", "task1", "--library", tmp_path / "library")
    assert code == 0, error
    assert "odd\\udcff" in out


def test_export(capsys, folders, tmp_path):
    build(capsys, folders[:2], tmp_path / "library")
    code, out, _ = run(capsys, "library", "export", tmp_path / "library", "-o", tmp_path / "table.csv")
    assert (code, out) == (0, f"2 rows: {tmp_path / 'table.csv'}\n")
    header, *rows = (tmp_path / "table.csv").read_text("utf-8").splitlines()
    assert header.startswith("name,state,images")
    assert [row.split(",")[0] for row in rows] == ["task0", "task1"]
    assert run(capsys, "library", "export", tmp_path / "library", "-o", tmp_path / "table.xls")[0] == 1


def test_merge(capsys, folders, tmp_path):
    for part in (0, 1):
        build(capsys, folders[:2], tmp_path / f"part{part}", "--part", f"{part}/2")
    merge = ["library", "merge", tmp_path / "part0", tmp_path / "part1", "-o", tmp_path / "all"]
    assert run(capsys, *merge)[:2] == (0, f"2 tasks: {tmp_path / 'all'}\n")
    assert Library(tmp_path / "all").names() == ["task0", "task1"]


def test_pull_and_push(capsys, folders, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    build(capsys, folders[:2], tmp_path / "library")
    code, out, _ = run(capsys, "library", "pull", f"{tmp_path}/library", "-o", tmp_path / "copy")
    assert (code, out) == (0, f"2 tasks: {tmp_path / 'copy'}\n")
    code, out, error = run(capsys, "library", "pull", tmp_path, "-o", tmp_path / "none")
    assert (code, error.count("\n")) == (1, 1)
    assert "expected a library in" in error

    sent = {}
    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, repo, **how: None)
    monkeypatch.setattr(
        hub.HfApi,
        "upload_folder",
        lambda self, *, folder_path, **how: sent.update({f.name: f.read_bytes() for f in folder_path.glob("*.*")}),
    )
    code, out, _ = run(capsys, "library", "push", tmp_path / "copy", "user/name", "--license", "mit")
    assert (code, out) == (0, "https://huggingface.co/datasets/user/name\n")
    assert set(sent) == {"library.json", "README.md", "map.png"}
    assert sent["map.png"].startswith(b"\x89PNG")
    assert b"license: mit" in sent["README.md"]
