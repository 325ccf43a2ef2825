"""The real run's script on tiny stand-ins of its data sets."""

import sys
from pathlib import Path

import pytest
import torch
from layouts import cub, image, inat2018

from task2vec_ext import as_task
from task2vec_ext.data import read_labels, tasks_from
from task2vec_ext.experts import recipe


@pytest.fixture
def roots(tmp_path):
    """iNaturalist and CUB as published, of 12 or more images a species."""
    return inat2018(tmp_path / "inat", times=8), cub(tmp_path / "cub", [1, 2, 3, 9, 10, 29, 107], images=12)


def test_an_image_is_on_the_same_side_in_every_task(tmp_path):
    from _tasks import part

    for kind, count in (("cats", 20), ("dogs", 20), ("owls", 20), ("rare", 1)):
        for i in range(count):
            image(tmp_path / "all" / kind / f"{kind}{i}.png", i)
    whole = as_task(tmp_path / "all")
    files = whole.source.names
    some = as_task([(tmp_path / "all" / file, int("owls" in file)) for file in files[10:]], name="owls or not")
    one, other = part(whole), part(some)
    assert one.train.classes == ("cats", "dogs", "owls")  # one image cannot be on both sides
    sides = {}
    for meta in (one, other):
        for side, task in (("train", meta.train), ("test", meta.test)):
            for file in task.source.names:
                name = Path(file).name
                assert sides.setdefault(name, side) == side
            assert set(read_labels(task).tolist()) == set(
                read_labels(one.train if meta is one else other.train).tolist()
            )
    assert 20 <= sum(side == "train" for side in sides.values()) <= 40  # 60 fair coins: 30 ± 2.6 standard deviations


def test_the_largest_of_every_domain_are_chosen_whatever_their_order(roots):
    from _tasks import domains, largest, part

    specs = [f"inat2018:{roots[0]}", f"cub:{roots[1]}"]
    tasks = [part(task) for task in tasks_from(*specs)]
    chosen = largest(tasks, 2)
    assert domains(chosen) == {"iNaturalist 2018": 2, "CUB-200-2011": 2}
    sizes = {task.name: len(task.train) for task in tasks if task.domain == "CUB-200-2011"}
    assert {task.name for task in chosen[2:]} == set(sorted(sizes, key=sizes.get)[-2:])
    assert {task.name for task in largest(tasks[::-1], 2)} == {task.name for task in chosen}
    assert largest(tasks, 2, fewest=10_000) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fisher_embed. expected other images in every class")  # the stand-ins are alike
def test_the_run_from_data_sets_to_table_goes_on_where_it_stopped(roots, tmp_path, monkeypatch, capsys):
    import _record
    import _selection
    import model_selection

    monkeypatch.setattr(_selection, "FORMS", ("layers",))
    monkeypatch.setattr(_selection, "PENALTIES", (0.1,))
    monkeypatch.setitem(recipe.RECIPES, "quick", recipe.Recipe("lbfgs", 1, 1e-2, "cosine", batch_size=8))
    monkeypatch.setattr(_record, "RESULTS", tmp_path / "results")
    arguments = ["--spec", f"inat2018:{roots[0]}", "--spec", f"cub:{roots[1]}", "--work", str(tmp_path / "work")]
    arguments += ["--probe", "tiny", "--weights", "random", "--image-size", "16", "--fewest", "5"]
    monkeypatch.setattr(sys, "argv", ["model_selection", *arguments])
    model_selection.main()
    (file,) = (tmp_path / "results").glob("*/model_selection.json")
    first, csv = file.read_text(), (tmp_path / "work" / "errors.csv").read_bytes()
    assert str(tmp_path) not in first  # nothing of this machine in a record
    assert '"second_half"' in first
    header, *rows = csv.decode().splitlines()
    assert len(header.split(",")) == 1 + 5  # two orders, an order and two families of birds
    assert rows[0].startswith("imagenet,")
    assert len(rows) == 1 + 5
    monkeypatch.setattr(model_selection, "fisher_embed", None)
    monkeypatch.setattr("task2vec_ext.experts.expert.fine_tune", None)
    monkeypatch.setattr("task2vec_ext.experts.features.Extractor._read", None)
    capsys.readouterr()
    model_selection.main()
    assert (tmp_path / "work" / "errors.csv").read_bytes() == csv
    assert "model2vec" in capsys.readouterr().out


def test_halves_share_every_domain_and_no_task():
    from _selection import halves

    from task2vec_ext.selection import ErrorMatrix

    errors = ErrorMatrix(torch.zeros(1, 5, dtype=torch.float64), ("e",), tuple("abcde"))
    assert [half.tasks for half in halves(errors)] == [("a", "c", "e"), ("b", "d")]
