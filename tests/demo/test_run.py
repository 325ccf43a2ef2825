import pytest
from pages import data_of

from task2vec_ext import Embedding
from task2vec_ext.demo import run
from task2vec_ext.demo.tasks import demo_tasks


def test_the_demo_ends_with_the_atlas_of_its_tasks(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    few = demo_tasks(seed=0, per_class=8)[::8]
    monkeypatch.setattr(run, "demo_tasks", lambda seed: few)
    result = run.run_demo(tmp_path)
    assert all(path.exists() for path in result.files.values())
    data = data_of(result.files["atlas"])
    assert [task["name"] for task in data["tasks"]] == [task.name for task in few]
    assert [task["domainName"] for task in data["tasks"]] == [task.family for task in few]
    assert [task["classes"] for task in data["tasks"]] == [list(task.classes) for task in few]
    assert all(task["sheet"] for task in data["tasks"])
    for file in (tmp_path / "embeddings").iterdir():
        assert Embedding.load(file).metadata["domain"] in {task.family for task in few}
