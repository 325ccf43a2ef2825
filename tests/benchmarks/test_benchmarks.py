"""The benchmarks run, check what they time, and report what was measured: small networks, no assertion on a time."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    import task2vec_ext  # noqa: F401  # first: from here on its sources, beside benchmarks/, would hide what is installed

    monkeypatch.syspath_prepend(str(ROOT))  # first: some peers install a package `benchmarks` of their own


@pytest.fixture
def setup():
    from benchmarks._step import Setup

    return Setup("tiny", batch_size=2, size=24)


def _mebibytes(count):
    return torch.ones(count, 1 << 18)


def _build(kept, freed, taken):
    held = _mebibytes(kept)
    _mebibytes(freed)
    return lambda: _mebibytes(taken).sum() + held.sum()


def test_peak_memory_is_that_of_the_step_alone():
    from benchmarks._measure import peak_memory

    assert 64 <= peak_memory(_build, 50, 300, 64, device="cpu") / 2**20 < 90


def test_ways_take_turns_until_their_budget_is_spent():
    from benchmarks._measure import interleave

    order = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "cpu")
    assert order == ["a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert len(interleave({"a": lambda: None}, 5, "cpu", budget=-1)["a"]) == 0


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_a_wrong_result_is_not_timed(error):
    from benchmarks._measure import check

    with pytest.raises(SystemExit, match=r"expected an error to the reference of at most 0\.1, got"):
        check("pass", error, 0.1)


def test_the_reference_tells_a_wrong_pass_from_a_right_one(setup, monkeypatch):
    from benchmarks import _step

    step = setup.build()
    assert max(step.errors().values()) < 1e-5
    right = _step.per_sample_fisher
    monkeypatch.setattr(_step, "per_sample_fisher", lambda *args: right(*args) * 1.01)
    assert list(step.errors().values()) == pytest.approx([0.01, 0.01], rel=1e-2)


def test_fisher_pass_breaks_the_time_down_by_layer(setup, capsys):
    from benchmarks import fisher_pass

    row = fisher_pass.measure(setup, repeats=1, memory=False)
    assert len(row["breakdown"]["layers"]) == sum(row["breakdown"]["layers_by_route"].values()) == 12
    assert row["time_ratio"]["n"] == 1
    fisher_pass.report(row)
    assert "input gradients" in capsys.readouterr().out


def test_input_gradients_are_those_of_the_pass_and_leave_no_weight_gradient(setup):
    from benchmarks.fisher_pass import input_gradients

    step = setup.build()
    seen = {}
    input_gradients(step, lambda name, module, input, grad_output: seen.update({name: (module, input, grad_output)}))
    assert set(seen) == {layer.name for layer in step.layers}
    assert all(input.shape[1] == module.in_channels for module, input, _ in seen.values())
    assert all(parameter.grad is None for parameter in step.probe.module.parameters())


def test_every_peer_gives_our_numbers_before_it_is_timed(setup):
    from benchmarks import peers

    ways = peers.measure(setup, repeats=1, memory=False)["ways"]
    assert set(ways) == {"plain", "ours", "vmap", "opacus", "backpack", "loop"}
    for name, way in ways.items():
        if name in peers.PACKAGES and way["version"] is None:
            assert "not installed" in way["failed"]
        elif name != "plain":
            assert way["relative_error"] < 1e-4, name
            assert way["time_to_plain"]["n"] == 1


def test_a_peer_of_other_numbers_is_not_timed(setup, monkeypatch):
    from benchmarks import peers

    monkeypatch.setattr(peers, "WAYS", {name: peers.WAYS[name] for name in ("plain", "ours", "loop")})
    monkeypatch.setitem(peers.WAYS, "loop", lambda step: lambda: torch.ones(step.layers[-1].stop))
    row = peers.measure(setup, repeats=1, memory=False)
    assert "other numbers" in row["ways"]["loop"]["failed"]
    assert "seconds" not in row["ways"]["loop"]
    peers.report(row)


def test_operator_measures_every_shape_by_every_route_it_does_not_skip(capsys, monkeypatch):
    from benchmarks import operator

    monkeypatch.setattr(operator, "measure_ceilings", lambda *_: {"gflops": 1.0, "gb_a_second": 1.0})
    monkeypatch.setattr(operator, "FLUSH_BYTES", 1)
    options = argparse.Namespace(arch=["tiny"], size=16, batch_size=2, repeats=1, device="cpu")
    table = operator.measure(options, "fp32")
    assert sum(row["layers"] for row in table["shapes"]) == 12
    for row in table["shapes"]:
        assert row["chosen"] in row["routes"]
        assert all("skipped" in figures or figures["relative_error"] < 1e-4 for figures in row["routes"].values())
        assert row["chosen_to_fastest"] >= 1
    operator.report(table)
    assert "shapes get their fastest route" in capsys.readouterr().out


def test_end_to_end_clocks_every_stage(setup):
    from benchmarks import end_to_end

    result = end_to_end.measure(setup, images=20, repeats=1)
    assert result["relative_error"] < 1e-3
    assert all(result["stages"][name] > 0 for name in ("features", "head", "fisher", "waiting"))


@pytest.fixture
def published(tmp_path):
    """A stand-in of iNaturalist 2018: 30 small images, 4 classes."""
    from benchmarks.inaturalist import write_synthetic

    write_synthetic(tmp_path, 30, side=40, classes=4)
    return tmp_path


def test_inaturalist_is_read_as_published(published):
    from benchmarks.inaturalist import inaturalist_task

    task = inaturalist_task(published, "train2018")
    counts = torch.bincount(task.labels).tolist()
    assert sum(counts) == len(task) == 30
    assert counts == sorted(counts, reverse=True)  # long-tailed
    assert counts[0] > 2 * counts[-1]
    names = [{"id": c, "name": f"Name {c}", "order": "Owls" if c == 3 else "Others"} for c in range(4)]
    (published / "categories.json").write_text(json.dumps(names))
    owls = inaturalist_task(published, "train2018", "order=Owls")
    assert len(owls) == counts[3]
    assert set(owls.labels.tolist()) == {0}
    assert len(inaturalist_task(published, "train2018", "supercategory=Aves")) == counts[0] + counts[3]


def test_inaturalist_stand_in_is_the_same_every_time(published, tmp_path_factory):
    from benchmarks.inaturalist import write_synthetic

    again = tmp_path_factory.mktemp("again")
    write_synthetic(again, 30, side=40, classes=4)
    files = sorted(path.relative_to(again) for path in again.rglob("*.j*"))
    assert len(files) == 31
    assert all((again / file).read_bytes() == (published / file).read_bytes() for file in files)


@pytest.mark.parametrize(
    ("harm", "where", "message"),
    [
        (lambda root: (root / "train2018.json").unlink(), None, "expected the annotations at .*train2018.json"),
        (lambda root: (root / "train2018.json").write_text("{}"), None, "'categories'\\] are missing"),
        (lambda root: next(root.rglob("*.jpg")).unlink(), None, "got 1 of 30 that are not"),
        (lambda root: None, "supercategory=Fungi", "found none; supercategory is one of Aves, Insecta, Plantae"),
        (lambda root: None, "order=Owls", "found none; ranks are id, name, supercategory"),
    ],
    ids=["no annotations", "not COCO", "an image is missing", "no such name", "no such rank"],
)
def test_inaturalist_says_what_is_missing_before_any_work(published, harm, where, message):
    from benchmarks.inaturalist import inaturalist_task

    harm(published)
    with pytest.raises(ValueError, match=message):
        inaturalist_task(published, "train2018", where)


def test_inaturalist_stand_in_never_overwrites_annotations(published):
    from benchmarks.inaturalist import write_synthetic

    with pytest.raises(ValueError, match="expected an empty folder"):
        write_synthetic(published, 3)


def test_inaturalist_says_who_waits_for_whom(published, capsys):
    from benchmarks import inaturalist

    options = argparse.Namespace(
        arch="tiny", size=24, workers=1, batch_size=8, num_samples=24, repeats=1, device="cpu", synthetic=30
    )
    result = inaturalist.measure(inaturalist.inaturalist_task(published, "train2018"), options)
    assert result["images"] == 24
    assert 0 < result["waiting_share"] < 1
    inaturalist.report(result)
    assert "device waits for images" in capsys.readouterr().out


def _record(result, benchmark="fisher_pass"):
    return {
        "command": f"python -m benchmarks.{benchmark}",
        "commit": "0123456789abcdef",
        "hardware": {"cpu": "Some CPU", "cores": 2, "threads": 2, "gpu": None},
        "versions": {"torch": "2.14.1", "python": "3.11"},
        "result": result,
    }


def _pass_result(ratio, size=224):
    row = {"arch": "resnet34", "precision": "fp32", "time_ratio": {"median": ratio}}
    return {"batch_size": 16, "size": size, "rows": [row]}


@pytest.mark.parametrize(
    ("ratio", "size", "shown"),
    [(0.7, 224, "| 0.70 [1] |"), (0.9, 224, "| 0.90 (missed) [1] |"), (0.7, 112, "| not measured |")],
    ids=["met", "missed", "of another size"],
)
def test_report_shows_what_the_json_says(tmp_path, ratio, size, shown):
    from benchmarks import report

    (tmp_path / "cpu-some").mkdir()
    (tmp_path / "cpu-some" / "fisher_pass.json").write_text(json.dumps(_record(_pass_result(ratio, size))))
    lines = report.table(tmp_path).splitlines()
    (line,) = [line for line in lines if "pass ÷ plain step, ResNet-34, batch 16" in line]
    assert shown in line
    assert sum("not measured" in line for line in lines) == len(report.ROWS) - ("[1]" in shown)
    if "[1]" in shown:
        assert "[1] Some CPU, 2 threads; torch 2.14.1, Python 3.11; commit 012345678" in lines[-1]


def test_report_replaces_only_what_is_between_its_markers():
    from benchmarks import report

    readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.with_table(readme, "new") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    with pytest.raises(SystemExit, match="one is missing"):
        report.with_table("before", "new")


def test_readme_and_json_agree(monkeypatch, tmp_path):
    from benchmarks import report

    monkeypatch.setattr(report, "RESULTS", ROOT / "benchmarks" / "results")
    monkeypatch.setattr(sys, "argv", ["report", "--check"])
    report.main()
    stale = tmp_path / "README.md"
    stale.write_text(report.with_table(report.README.read_text(encoding="utf-8"), "old"), encoding="utf-8")
    monkeypatch.setattr(report, "README", stale)
    with pytest.raises(SystemExit, match=r"disagree; run python -m benchmarks\.report"):
        report.main()
    monkeypatch.setattr(sys, "argv", ["report"])
    report.main()
    assert stale.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


def test_rows_of_images_have_the_embedding_as_their_mean_and_are_kept(tmp_path, monkeypatch):
    from cases import assert_near
    from small import Blobs, small_probe

    from benchmarks import _rows
    from task2vec_ext import as_task, fisher_embed

    task, probe = as_task(Blobs(n=60)), small_probe()
    found = _rows.rows(task, probe, estimator="signed", l2=1e-2, cache=tmp_path)
    assert_near(found.fisher.double().mean(0), fisher_embed(task, probe, progress=False).fisher, 1e-5)
    monkeypatch.setattr(_rows, "read", lambda *_: pytest.fail("computed again"))
    assert torch.equal(_rows.rows(task, probe, estimator="signed", l2=1e-2, cache=tmp_path).fisher, found.fisher)


def test_the_authors_batch_means_estimate_the_fisher_within_5_standard_errors():
    from small import Blobs, small_probe

    from benchmarks import _rows, sample_size
    from task2vec_ext import as_task
    from task2vec_ext.data import Batch
    from task2vec_ext.fisher.per_sample import per_sample_fisher

    task, probe = as_task(Blobs(n=60)), small_probe()
    images = _rows.read(task, probe)
    head = _rows.fitted(probe, images, 1.0)
    truth = per_sample_fisher(probe, probe.layers(), head, Batch(*images), "exact").mean(0).sum()
    norms = sample_size._batch_means(probe, images, head, 200, torch.Generator().manual_seed(0)).sum(1)
    assert abs(norms.mean() - truth) < 5 * norms.std() / 200**0.5


def test_coverage_counts_intervals_that_hold_the_truth():
    from benchmarks import coverage

    random = torch.Generator().manual_seed(0)
    pools = [torch.rand(500, 30, generator=random) for _ in range(2)]
    truths = [pool.double().mean(0) for pool in pools]

    def draw(number, samples):
        return coverage._grouped(pools[number][torch.randint(500, (samples,), generator=random)])

    right = coverage._count(iter([(0, 1)] * 40), truths, draw, 64)
    wrong = coverage._count(iter([(0, 1)] * 40), [2 * truths[0], truths[1].flip(0)], draw, 64)
    assert right["norm"]["coverage"] > 0.8  # 95 % ± 3.4 %: more than four standard errors
    assert wrong["norm"]["coverage"] == 0


def test_the_nearest_are_found_among_drawn_tasks(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    from benchmarks import nearest

    monkeypatch.setattr(nearest, "peak_memory", lambda *args, **kwargs: 0)  # a fresh process takes seconds
    real = torch.randn(6, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    real[0, :3] = 0
    result = nearest.measure(real, tasks=120, queries=4, candidates=[10, 120], folder=tmp_path)
    assert result["rounding"] < nearest.ROUNDING
    assert result["ways"]["shortlist of 120"]["recall"] == 1
    assert 0.5 < result["ways"]["shortlist of 10"]["recall"] <= 1
    drawn = nearest.draw(real, 50, torch.Generator().manual_seed(0))
    assert (drawn == 0).sum() in range(3, 3 * 50, 3)
    torch.testing.assert_close(drawn[drawn > 0].log().mean(), real[real > 0].log().mean(), atol=0.3, rtol=0)
