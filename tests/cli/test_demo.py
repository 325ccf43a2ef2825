import re

import pytest
from command import run

from task2vec_ext.demo import run as module
from task2vec_ext.demo.tasks import demo_tasks


def test_the_demo_prints_every_task_its_nearest_one_and_its_files(capsys, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    few = demo_tasks(seed=0, per_class=8)[::6]
    monkeypatch.setattr(module, "demo_tasks", lambda seed: few)
    code, out, error = run(capsys, "demo", "-o", tmp_path)
    assert (code, error) == (0, "")
    assert f"Embedded {len(few)} tasks ({sum(map(len, few))} images)" in out
    lines = [line.strip() for line in out.splitlines()]
    for task in few:
        (row,) = (line for line in lines if line.startswith(task.name))
        assert str(task.family) in row.removeprefix(task.name)
        assert any(other.name in row.removeprefix(task.name) for other in few)
    assert re.search(rf"same family for \d of {len(few)} tasks \(by chance: \d\)", out)
    assert (tmp_path / "atlas" / "index.html").as_uri() in out
    for file in ("distances.png", "distances.csv", "tasks.csv", "embeddings"):
        assert str(tmp_path / file) in out


def test_the_demo_refuses_a_folder_it_cannot_write_into(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = run(capsys, "demo", "-o", tmp_path / "file")
    assert code == 1
    assert "demo: cannot write into" in error
