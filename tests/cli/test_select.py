"""`task2vec select TASK` and `task2vec select evaluate`, on experts of the tiny probe that were never fine-tuned."""

import json
import math
import re
from typing import get_args

import pytest
import torch
from command import run
from PIL import Image
from synthetic import problem

from task2vec_ext import Embedding, EmbedSettings, build_library, cross_distances, fisher_embed, load_probe
from task2vec_ext.cli.select import SelectorName
from task2vec_ext.experts.expert import save_expert
from task2vec_ext.selection import SELECTORS, Distance, ErrorMatrix


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three tasks and the experts of the first two (one network, two names), the embeddings of all in a folder."""
    root = tmp_path_factory.mktemp("world")
    probe = load_probe("tiny")
    for t in range(3):
        for c in range(2):
            folder = root / "tasks" / f"task{t}" / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(6):
                noise = Image.effect_noise((52, 52), 20 + 60 * c + 10 * t)
                Image.merge("RGB", [noise, noise.rotate(90 * t), noise]).save(folder / f"{i}.png")
        embedding = fisher_embed(root / "tasks" / f"task{t}", probe)
        (root / "embeddings").mkdir(exist_ok=True)
        embedding.save(root / "embeddings" / f"task{t}.safetensors")
        if t < 2:
            expert = save_expert(probe, root / "experts", f"task{t}", num_images=12 + t)
            embedding.save(expert.embedding_file)
    errors = torch.tensor([[0.1, 0.3, 0.2], [0.4, 0.1, 0.5]], dtype=torch.float64)
    ErrorMatrix(errors, ("task0", "task1"), ("task0", "task1", "task2")).write_csv(root / "errors.csv")
    return root


def test_a_task_s_experts_are_ranked_with_places_and_a_reason(capsys, world):
    task = world / "tasks" / "task2"
    code, out, error = run(capsys, "select", task, "--experts", world / "experts")
    assert code == 0, error
    assert re.search(r"1 +task[01] +-?0\.\d{4} +0\.\d{4} +1–[12] +tiny +1[23]", out)
    assert re.search(r"\ntask[01] was trained on the nearest task \(asym score -?0\.\d+\), \S+ ahead of task[01]", out)
    code, out, _ = run(capsys, "select", "--experts", world / "experts", "--json", task)
    content = json.loads(out)
    sources = [Embedding.load(world / "embeddings" / f"task{t}.safetensors") for t in range(3)]
    expected = -cross_distances(sources[:2], sources[2:], "asym")[:, 0]
    assert {one["name"]: one["score"] for one in content["experts"]} == pytest.approx(
        {f"task{t}": float(expected[t]) for t in range(2)}
    )
    assert all(1 <= one["best"] <= one["worst"] <= 2 and one["standard_error"] > 0 for one in content["experts"])
    (world / "experts" / "task1" / "embedding.safetensors").rename(world / "aside")
    out = run(capsys, "select", task, "--experts", world / "experts")[1]
    (world / "aside").rename(world / "experts" / "task1" / "embedding.safetensors")
    assert re.search(r"\n ?2 +task1 +– ", out)
    assert "task0 was trained on the nearest task" in out
    assert "1 of 2 experts have no score" in out
    by_file = run(capsys, "select", "rank", world / "embeddings" / "task2.safetensors", "--experts", world / "experts")
    assert content["why"] in by_file[1]


@pytest.mark.parametrize("by", ["leep", "knn", "largest_task"])
def test_ties_are_told(capsys, world, by):
    code, out, error = run(capsys, "select", world / "tasks" / "task2", "--experts", world / "experts", "--by", by)
    assert code == 0, error
    if by == "largest_task":
        assert "task1 was trained on the task with the most images (largest_task score 13), 1 ahead of task0." in out
    else:  # one network under two names
        assert "tied with 1 other." in out


def test_what_is_learned_comes_from_errors_on_other_tasks(capsys, world):
    arguments = ["select", world / "tasks" / "task2", "--experts", world / "experts", "--by", "model2vec"]
    code, _, error = run(capsys, *arguments)
    assert (code, error.count("\n")) == (1, 1)
    assert "expected --errors with --by model2vec" in error
    options = ["--errors", world / "errors.csv", "--library", world / "embeddings"]
    code, out, error = run(capsys, *arguments, *options)
    assert code == 0, error
    assert re.search(r"task[01] is the nearest, as its errors on other tasks place it", out)


def test_mistakes_are_one_line(capsys, world, tmp_path):
    task, experts = world / "tasks" / "task2", world / "experts"
    other = Embedding.load(world / "embeddings" / "task2.safetensors")
    random = fisher_embed(task, load_probe("tiny", weights="random"))
    random.save(tmp_path / "random.safetensors")
    assert random.probe.fingerprint != other.probe.fingerprint
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([task, "--experts", tmp_path / "empty"], "expected experts in"),
        ([task, "--experts", tmp_path / "none"], "expected a folder of experts"),
        ([tmp_path / "random.safetensors", "--experts", experts], "that differ in probe: tiny"),
        ([task, "--experts", experts, "--weights", "random"], "expected the probe of the embeddings"),
        ([world / "embeddings" / "task2.safetensors", "--experts", experts, "--by", "leep"], "the experts' outputs"),
        (["evaluate", tmp_path / "none.csv"], "expected a CSV file"),
        (["evaluate", world / "errors.csv", "--by", "nearest"], "expected --by to be one of chance"),
        (["evaluate", world / "errors.csv", "--library", tmp_path / "empty"], "expected a library or embeddings"),
    ):
        code, out, error = run(capsys, "select", *arguments)
        assert (code, out) == (1, ""), error
        assert error.startswith("task2vec: error: ")
        assert error.count("\n") == 1
        assert message in error


def test_evaluate_prints_the_table_and_json(capsys, tmp_path):
    errors, tasks, _ = problem(E=4, T=8)
    imagenet = torch.full((1, 8), 0.5, dtype=torch.float64)
    full = torch.cat([errors.errors, imagenet])
    full[1, 6] = math.nan
    ErrorMatrix(full, (*errors.experts, "imagenet"), (*errors.tasks[:7], "a stranger")).write_csv(tmp_path / "e.csv")
    for name, task in tasks.items():
        task.embedding.save(tmp_path / f"{name}.safetensors")
    arguments = ["select", "evaluate", tmp_path / "e.csv", "--library", tmp_path]
    code, out, error = run(capsys, *arguments, "--folds", 3, "--draws", 200)
    assert code == 0, error
    for name in ("chance", "imagenet", "largest_task", "sym", "asym_fitted", "model2vec"):
        assert re.search(rf"\n ?{name} +[+-]\d+\.\d \[", out), name
    assert re.search(r"\n ?asym +\+0\.0 \[0\.0, 0\.0\] +\+0\.0 .* 100 \[100, 100\]", out)  # errors follow d_asym
    assert "7 tasks, 4 experts" in out
    assert "not scored: a stranger (no embedding)" in out
    assert "no row: domain (expected task" in out
    code, out, _ = run(capsys, *arguments, "--by", "asym", "--by", "chance", "--json")
    content = json.loads(out)
    assert list(content["selectors"]) == ["asym", "chance"]
    assert content["selectors"]["asym"]["top1"] == {"value": 1, "low": 1, "high": 1}
    assert content["left_out"] == {"a stranger": "no embedding"}
    assert Distance().passes(4) == content["selectors"]["asym"]["passes"] == 3


def test_evaluate_takes_the_experts_sizes_from_their_cards(capsys, world):
    arguments = ["select", "evaluate", world / "errors.csv", "--experts", world / "experts", "--by", "largest_task"]
    content = json.loads(run(capsys, *arguments, "--json")[1])
    # task1's expert saw more images; task2 alone has two experts to choose from.
    assert content["selectors"]["largest_task"]["points"]["value"] == pytest.approx(0.5 - 0.2)
    assert list(content["left_out"]) == ["task0", "task1"]


def test_evaluate_says_how_it_understood_a_table_and_takes_sizes(capsys, world, tmp_path):
    """The same errors, a row for each task, with blanks and in per cent."""
    (tmp_path / "turned.csv").write_text("task, task0 ,task1\ntask0,10,40\n task1,30,10\ntask2,20,50\n")
    (tmp_path / "sizes.csv").write_text("task,images\ntask0,5\ntask1,3\n")
    options = ["--by", "largest_task", "--by", "chance", "--json"]
    turned = ["evaluate", tmp_path / "turned.csv", "--sizes", tmp_path / "sizes.csv", *options]
    found = json.loads(run(capsys, "select", *turned)[1])
    assert found["decided"] == [
        "rows are tasks (the header's first cell is 'task')",
        "errors are percentages (most are over 1, the largest is 50)",
    ]
    plain = json.loads(run(capsys, "select", "evaluate", world / "errors.csv", *options)[1])
    for measure in ("increase", "points"):
        value = plain["selectors"]["chance"][measure]["value"]
        assert found["selectors"]["chance"][measure]["value"] == pytest.approx(value)
    assert found["selectors"]["largest_task"]["points"]["value"] == 0  # task0's expert, which is right for task2
    assert "expected an expert with a known number of images" in plain["unable"]["largest_task"]
    sized = ["--experts", world / "experts", "--sizes", tmp_path / "sizes.csv"]  # the cards say otherwise
    found = json.loads(run(capsys, "select", "evaluate", world / "errors.csv", *options, *sized)[1])
    assert found["selectors"]["largest_task"]["points"]["value"] == 0
    out = run(capsys, "select", *turned[:4])[1]
    assert "turned.csv: rows are tasks (the header's first cell is 'task'); errors are percentages" in out
    assert "no row: imagenet (expected a row imagenet in the errors, got none among 2 rows)" in out


def test_the_options_of_rank_are_those_of_select(capsys):
    out = run(capsys, "select", "--help")[1]
    assert "--experts DIR" in out
    assert "--skip-unreadable" in out


def test_evaluate_takes_the_tasks_sizes_from_a_library(capsys, world, tmp_path):
    tasks = [world / "tasks" / f"task{t}" for t in range(3)]
    build_library(tasks, tmp_path, "tiny", settings=EmbedSettings(num_samples=8))
    arguments = ["select", "evaluate", world / "errors.csv", "--library", tmp_path, "--by", "largest_task"]
    content = json.loads(run(capsys, *arguments, "--by", "asym", "--json")[1])
    assert content["unable"] == {}
    # All tasks have 12 images: both experts tie on task2.
    assert content["selectors"]["largest_task"]["points"]["value"] == pytest.approx(0.35 - 0.2)


def test_every_selector_can_be_asked_for_but_those_that_choose_no_expert():
    assert set(get_args(SelectorName)) == set(SELECTORS) - {"chance", "imagenet", "domain"}
