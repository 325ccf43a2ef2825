import csv
import json
import re
from dataclasses import replace

import pytest
from command import run
from families import embedding, families
from pages import data_of

from task2vec_ext import Reference
from task2vec_ext.plot import save_figure

TAXA = [{"class": "Aves", "order": order} for order in ("Piciformes", "Piciformes", "Passeriformes", "Anseriformes")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six embeddings of two families, four of them with a place in a taxonomy."""
    root = tmp_path_factory.mktemp("embeddings")
    for number, task in enumerate([embedding(i, i // 3, taxonomy=TAXA[i] if i < 4 else None) for i in range(6)]):
        task.save(root / f"{number}.safetensors")
    return root


@pytest.fixture
def drawn(monkeypatch):
    """The axes that were saved."""
    saved = []

    def keep(ax, path):
        saved.append(ax)
        save_figure(ax, path)

    monkeypatch.setattr("task2vec_ext.plot.save_figure", keep)
    return saved


@pytest.mark.parametrize("kind", ["matrix", "map", "norms", "taxonomy"])
def test_every_kind_is_drawn_from_a_folder(capsys, folder, tmp_path, drawn, kind):
    file = tmp_path / f"{kind}.png"
    code, out, error = run(capsys, "plot", folder, "--kind", kind, "-o", file, "--title", "six tasks")
    assert (code, error) == (0, "")
    assert str(file) in out
    assert file.read_bytes().startswith(b"\x89PNG")
    (ax,) = drawn
    assert ax.get_title() == "six tasks"
    groups = [text.get_text() for text in ax.get_legend().get_texts()]
    assert groups == (
        ["k nearest", "taxonomy's own order", "chance"] if kind == "taxonomy" else ["family 0", "family 1"]
    )


def test_two_tasks_layer_by_layer(capsys, folder, tmp_path, drawn):
    code, _, _ = run(
        capsys, "plot", folder, "--kind", "layers", "-o", tmp_path / "l.svg", "--task", "f0-task1", "--task", "f1-task3"
    )
    assert code == 0
    assert [line.get_label() for line in drawn[0].get_lines()] == ["f0-task1", "f1-task3"]
    code, _, error = run(capsys, "plot", folder, "--kind", "layers", "-o", tmp_path / "l.svg", "--task", "f9")
    assert code == 1
    assert "expected --task NAME, once for each task to compare, got f9" in error


def test_colours_by_a_rank_of_the_embeddings_own_taxonomy_or_a_table_s(capsys, folder, tmp_path, drawn):
    code, _, _ = run(capsys, "plot", folder, "--kind", "map", "-o", tmp_path / "m.pdf", "--colour-by", "order")
    assert code == 0
    legend = [text.get_text() for text in drawn[0].get_legend().get_texts()]
    assert legend == ["Anseriformes", "Passeriformes", "Piciformes", "unknown"]
    table = tmp_path / "taxonomy.csv"
    with table.open("w", newline="") as file:
        rows = [
            ("task", "phylum", "order"),
            ("f0-task0", "Chordata", "A"),
            ("f0-task0", "Chordata", "B"),
            ("f1-task5", "Chordata", "C"),
        ]
        csv.writer(file).writerows(rows)
    arguments = ("--kind", "map", "-o", tmp_path / "m.pdf", "--taxonomy", table, "--colour-by")
    assert run(capsys, "plot", folder, *arguments, "order")[0] == 0
    assert [text.get_text() for text in drawn[1].get_legend().get_texts()] == ["A or B", "C", "unknown"]
    code, _, error = run(capsys, "plot", folder, *arguments, "tribe")
    assert code == 1
    assert "one of domain, phylum, order; got 'tribe'" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "matrix", "-o", "m.jpg"], r"\.png, \.svg or \.pdf"),
        (["--kind", "taxonomy", "-o", "t.png", "--taxonomy", "none.csv"], "expected a CSV file"),
    ],
)
def test_plot_refuses_before_it_works(capsys, folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, "plot", folder, *arguments)
    assert code == 1
    assert re.search(message, error)
    assert list(tmp_path.iterdir()) == []


def test_the_atlas_is_coloured_by_a_table(capsys, tmp_path):
    """Tasks of folders have no domain: the first rank of a table, or another one."""
    for number in range(4):
        plain = replace(embedding(number, number // 2), metadata={})
        plain.save(tmp_path / f"{number}.safetensors")
    names = [f"f{number // 2}-task{number}" for number in range(4)]
    rows = [f"{name},{'land' if number < 3 else 'sea'},{name}" for number, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["task,domain,kind", *rows]))
    for options, groups in (([], ["land", "sea"]), (["--group-by", "kind"], names)):
        code, _, error = run(
            capsys, "atlas", tmp_path, "-o", tmp_path / "a", "--taxonomy", tmp_path / "t.csv", *options
        )
        assert code == 0, error
        data = data_of(tmp_path / "a" / "index.html")
        assert [domain["name"] for domain in data["domains"]] == groups
    (tmp_path / "t.csv").write_text("task,domain\nnobody,land\n")
    error = run(capsys, "atlas", tmp_path, "-o", tmp_path / "a", "--taxonomy", tmp_path / "t.csv")[2]
    assert "expected tasks of these embeddings in" in error


def test_plots_name_their_distance(capsys, folder, tmp_path, drawn):
    for kind, distance, place in (
        ("matrix", "d_sym_scaled", lambda ax: ax.child_axes[-1].get_ylabel()),
        ("map", "d_asym, α = 0.3", lambda ax: ax.get_xlabel()),
        ("taxonomy", "d_sym", lambda ax: ax.get_xlabel()),
        ("map", "d_library_correlation", lambda ax: ax.get_xlabel()),
    ):
        options = ["--distance", distance.removeprefix("d_").split(",")[0], "--alpha", 0.3]
        if distance == "d_library_correlation":
            Reference.of([embedding(i, i) for i in range(10)]).save(tmp_path / "reference")
            options += ["--reference", tmp_path / "reference"]
        assert run(capsys, "plot", folder, "--kind", kind, "-o", tmp_path / "p.svg", *options)[0] == 0
        assert distance in place(drawn[-1])
    ticks = drawn[-2].get_xticks()
    assert all(tick == int(tick) for tick in ticks)  # k is a whole number


def test_folders_without_embeddings_or_taxonomy_say_so(capsys, tmp_path):
    assert "library or embeddings" in run(capsys, "plot", tmp_path, "--kind", "map", "-o", "m.png")[2]
    assert "library or embeddings" in run(capsys, "atlas", tmp_path)[2]
    for task in families(2):
        task.save(tmp_path / f"{task.name}.safetensors")
    error = run(capsys, "plot", tmp_path, "--kind", "taxonomy", "-o", tmp_path / "t.png")[2]
    assert "got 0 of 2; name a table of them with --taxonomy" in error


def test_the_atlas_of_a_library_has_its_images_and_experts(capsys, tmp_path):
    from PIL import Image

    for t in range(3):
        for c in range(2):
            (tmp_path / f"task{t}" / f"class{c}").mkdir(parents=True)
            for i in range(4):
                Image.effect_noise((50 + t, 50), 20 + 60 * c).save(tmp_path / f"task{t}" / f"class{c}" / f"{i}.png")
    folders = [tmp_path / f"task{t}" for t in range(3)]
    assert run(capsys, "embed", *folders, "-o", tmp_path / "library", "--probe", "tiny")[0] == 0
    selection = tmp_path / "selection.json"
    ranked = [{"task": f"task{t}", "experts": [{"name": "an expert", "score": 0.5}]} for t in range(2)]
    selection.write_text("\n".join(json.dumps(one, indent=1) for one in ranked))  # as >> appends them
    code, out, error = run(
        capsys,
        "atlas",
        tmp_path / "library",
        "-o",
        tmp_path / "atlas",
        "--images",
        folders[1],
        "--selection",
        selection,
    )
    assert (code, error) == (0, "")
    page = tmp_path / "atlas" / "index.html"
    assert page.as_uri() in out
    tasks = data_of(page)["tasks"]
    assert [task["name"] for task in tasks] == ["task0", "task1", "task2"]
    assert [task["sheet"] is not None for task in tasks] == [False, True, False]
    assert tasks[0]["experts"] == [["an expert", 0.5]]
    assert all(low is not None for task in tasks for *_, low, _ in task["near"])

    selection.write_text("[1]")
    code, _, error = run(capsys, "atlas", tmp_path / "library", "-o", tmp_path / "none", "--selection", selection)
    assert code == 1
    assert "something else" in error
    assert not (tmp_path / "none").exists()
