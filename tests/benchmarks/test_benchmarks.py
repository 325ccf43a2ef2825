"""The benchmarks run, check what they time, and report what was measured: small networks, no assertion on a time."""

import argparse
import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
TINY = "--tasks 60 --filters 40 --rounds 2"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # as a script has it


@pytest.mark.slow
@pytest.mark.parametrize("place", ["clone", "elsewhere"])
def test_a_script_runs_from_any_folder_and_writes_its_record(place, tmp_path):
    """The fastest of them; test_gpu_script.py runs most."""
    results = tmp_path / "results"
    ran = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "distances.py", *TINY.split()],
        cwd=ROOT if place == "clone" else tmp_path,
        env={**os.environ, "TASK2VEC_RESULTS": str(results), "TASK2VEC_COMMIT": "abc"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    (file,) = results.glob("*/*.*")
    record = json.loads(file.read_text())
    assert file.name == "distances.json"
    assert ran.stdout.endswith(f"{file}\n")
    assert record["commit"] == "abc"
    assert record["command"] == f"python benchmarks/distances.py {TINY}"


def test_no_script_hides_another_module():
    taken = sys.stdlib_module_names | packages_distributions().keys() | set(sys.builtin_module_names)
    assert set(SCRIPTS) & taken == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_public_names_alone(script):
    module = importlib.import_module(script)
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module.startswith("task2vec_ext")]
    names = [name for node in ours for name in (*node.module.split("."), *(alias.name for alias in node.names))]
    assert [name for name in names if name.startswith("_")] == []


@pytest.mark.parametrize("git", [True, False])
def test_a_record_has_the_commit_that_git_or_nobody_says(git, tmp_path, monkeypatch):
    import _record

    def run(*args, **kwargs):
        if not git:
            raise FileNotFoundError("git")
        return subprocess.CompletedProcess(args, 0, "0123\n")

    monkeypatch.delenv("TASK2VEC_COMMIT", raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/nearest.py", "--data", "/home/me/data", "--tasks", "3"])
    record = json.loads(_record.write_record("nearest", {}).read_text())
    assert record["commit"] == ("0123" if git else None)
    assert record["command"] == "python benchmarks/nearest.py --data DIR --tasks 3"


@pytest.fixture
def setup():
    from _step import Setup

    return Setup("tiny", batch_size=2, size=24)


def test_peak_memory_is_that_of_the_step_alone():
    from _measure import peak_memory
    from memory import step_of

    assert 64 <= peak_memory(step_of, 50, 300, 64, device="cpu") / 2**20 < 90


def test_ways_take_turns_until_their_budget_is_spent():
    from _measure import interleave

    order = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "cpu")
    assert order == ["a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert len(interleave({"a": lambda: None}, 5, "cpu", budget=-1)["a"]) == 0


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_a_wrong_result_is_not_timed(error):
    from _measure import check

    with pytest.raises(SystemExit, match=r"expected an error to the reference of at most 0\.1, got"):
        check("pass", error, 0.1)


def test_the_reference_tells_a_wrong_pass_from_a_right_one(setup, monkeypatch):
    import _step

    step = setup.build()
    assert max(step.errors().values()) < 1e-5
    right = _step.per_sample_fisher
    monkeypatch.setattr(_step, "per_sample_fisher", lambda *args: right(*args) * 1.01)
    assert list(step.errors().values()) == pytest.approx([0.01, 0.01], rel=1e-2)


def test_fisher_pass_does_not_time_a_wrong_operator_and_goes_on(setup, monkeypatch, tmp_path, capsys):
    import _record
    import _step
    import fisher_pass

    right, wrong = _step.filter_grad_sq, [1.0001]  # in one layer of the first row
    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    monkeypatch.setattr(_step, "filter_grad_sq", lambda *args: right(*args) * (wrong.pop() if wrong else 1))
    monkeypatch.setattr(fisher_pass, "peak_memory", lambda *args, **kwargs: 1)  # a fresh process takes seconds
    options = "--arch tiny --size 24 --batch-size 2 --repeats 1 --device cpu --precision fp32 bf16"
    monkeypatch.setattr(sys, "argv", ["fisher_pass.py", *options.split()])
    with pytest.raises(SystemExit, match=r"tiny fp32: contiguous, filter_grad_sq in \S+: expected an error within"):
        fisher_pass.main()
    first, second = fisher_pass.read_result("fisher_pass")["rows"]
    assert "seconds" not in first
    assert second["precision"] == "bf16"
    assert "nothing timed" in capsys.readouterr().out


def test_fisher_pass_appends_to_rows_of_the_same_commit(monkeypatch, tmp_path):
    import _record
    import fisher_pass

    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    monkeypatch.setenv("TASK2VEC_COMMIT", "abc")
    monkeypatch.setattr(fisher_pass, "report", lambda row: None)
    monkeypatch.setattr(
        fisher_pass, "measure", lambda setup, repeats: {"arch": setup.arch, "precision": setup.precision}
    )

    def rows(arch):
        monkeypatch.setattr(sys, "argv", ["fisher_pass.py", "--append", "--device", "cpu", "--arch", arch])
        fisher_pass.main()
        return [row["arch"] for row in fisher_pass.read_result("fisher_pass")["rows"]]

    assert rows("resnet34") == ["resnet34"]
    assert rows("resnet50") == ["resnet34", "resnet50"]
    assert rows("resnet34") == ["resnet50", "resnet34"]  # measured again
    monkeypatch.setenv("TASK2VEC_COMMIT", "def")
    assert rows("resnet18") == ["resnet18"]


def test_fisher_pass_breaks_the_time_down_by_layer(setup, capsys):
    import fisher_pass

    row = fisher_pass.measure(setup, repeats=1, memory=False)
    assert len(row["breakdown"]["layers"]) == sum(row["breakdown"]["layers_by_route"].values()) == 12
    assert row["time_ratio"]["n"] == 1
    fisher_pass.report(row)
    assert "input gradients" in capsys.readouterr().out


def test_input_gradients_are_those_of_the_pass_and_leave_no_weight_gradient(setup):
    step = setup.build()
    seen = {}
    step.input_gradients(lambda layer: seen.update({layer.name: layer}))
    assert set(seen) == {layer.name for layer in step.layers}
    assert all(layer.input.shape[1] == layer.layer[0][1] for layer in seen.values())
    assert all(parameter.grad is None for parameter in step.probe.module.parameters())


def test_every_peer_gives_our_numbers_before_it_is_timed(setup):
    import peers

    ways = list(peers.measure(setup, repeats=1, memory=False))[-1]["ways"]
    assert set(ways) == {"plain", "ours", "vmap", "opacus", "backpack", "loop"}
    for name, way in ways.items():
        if name in peers.PACKAGES and way["version"] is None:
            assert "not installed" in way["failed"]
        elif name != "plain":
            assert way["relative_error"] < 1e-4, name
            assert way["time_to_plain"]["n"] == 1


def test_a_peer_of_other_numbers_is_not_timed(setup, monkeypatch):
    import peers

    monkeypatch.setattr(peers, "WAYS", {name: peers.WAYS[name] for name in ("plain", "ours", "loop")})
    monkeypatch.setitem(peers.WAYS, "loop", lambda step: lambda: torch.ones(step.layers[-1].stop))
    *_, row = peers.measure(setup, repeats=1, memory=False)
    assert "other numbers" in row["ways"]["loop"]["failed"]
    assert "seconds" not in row["ways"]["loop"]
    peers.report(row)


def test_filter_grad_sq_measures_every_shape_by_every_route_it_does_not_skip(capsys, monkeypatch):
    import filter_grad_sq

    monkeypatch.setattr(filter_grad_sq, "measure_ceilings", lambda *_: {"gflops": 1.0, "gb_a_second": 1.0})
    monkeypatch.setattr(filter_grad_sq, "FLUSH_BYTES", 1)
    options = argparse.Namespace(arch=["tiny"], size=16, batch_size=2, repeats=1, device="cpu")
    *_, table = filter_grad_sq.measure(options, "fp32")
    assert sum(row["layers"] for row in table["shapes"]) == 12
    for row in table["shapes"]:
        assert row["chosen"] in row["routes"]
        assert all("skipped" in figures or figures["relative_error"] < 1e-4 for figures in row["routes"].values())
        assert row["chosen_to_fastest"] >= 1
    filter_grad_sq.report(table)
    assert "shapes get their fastest route" in capsys.readouterr().out


def test_filter_grad_sq_does_not_time_a_wrong_route_and_goes_on(monkeypatch, capsys):
    import filter_grad_sq

    right = filter_grad_sq.filter_grad_sq
    wrong = {"winograd": 1.001, "direct": 1.0, "shifted_gram": 1.0}
    monkeypatch.setattr(filter_grad_sq, "measure_ceilings", lambda *_: {"gflops": 1.0, "gb_a_second": 1.0})
    monkeypatch.setattr(filter_grad_sq, "FLUSH_BYTES", 1)
    monkeypatch.setattr(filter_grad_sq, "SKIP", 1e9)
    monkeypatch.setattr(filter_grad_sq, "filter_grad_sq", lambda *args, route: right(*args, route=route) * wrong[route])
    options = argparse.Namespace(arch=["tiny"], size=16, batch_size=2, repeats=1, device="cpu")
    *_, table = filter_grad_sq.measure(options, "fp32")
    failed = {route for row in table["shapes"] for route, figures in row["routes"].items() if "failed" in figures}
    assert failed == {"winograd"}
    assert all(row["fastest"] in ("direct", "shifted_gram") for row in table["shapes"])
    filter_grad_sq.report(table)
    assert "shapes get their fastest route" in capsys.readouterr().out


class _Graph:
    """A CUDA graph on the CPU: it keeps nothing and replays nothing."""

    def capture_begin(self):
        pass

    def capture_end(self):
        pass

    def replay(self):
        pass


class _Event:
    def __init__(self, enable_timing):
        self.at = None

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """torch.cuda's clock and graphs, as the benchmarks call them, on the CPU."""

    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    for name, value in {
        "CUDAGraph": _Graph,
        "Event": _Event,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("capturable", [True, False])
def test_the_gpus_clock_times_the_replay_or_the_call(capturable, pretended_gpu, monkeypatch, capsys):
    import _measure

    def refuse(self):
        raise RuntimeError("operation not permitted when stream is capturing")

    if not capturable:
        monkeypatch.setattr(_Graph, "capture_end", refuse)
    calls = []
    replay = _measure.captured(lambda: calls.append(1))
    assert len(calls) == 2  # to warm up, and into the graph
    assert (replay is not None) is capturable
    assert ("not permitted" in capsys.readouterr().err) is not capturable
    assert _measure.gpu_seconds_of(replay or calls.clear, "cuda") >= 0
    assert _measure.host_seconds_of(lambda: calls.append(1), "cuda", calls=3) > 0


def test_end_to_end_clocks_every_stage(setup):
    import end_to_end

    first, *_, result = end_to_end.measure(setup, count=20, repeats=1)
    assert first["relative_error"] < 1e-3
    assert result["time_ratio"]["n"] == 1
    assert all(result["stages"][name] > 0 for name in ("features", "head", "fisher", "waiting"))


@pytest.fixture
def published(tmp_path):
    """A stand-in of iNaturalist 2018: 30 small images, 4 classes."""
    from inaturalist import write_synthetic

    write_synthetic(tmp_path, 30, side=40, classes=4)
    return tmp_path


def test_inaturalist_is_one_task_of_all_species_or_of_a_taxon(published):
    from inaturalist import task_of

    task = task_of(published)
    counts = dict(zip(task.classes, torch.bincount(task.labels).tolist(), strict=True))
    assert sum(counts.values()) == len(task) == 30
    numbers = [counts[f"species {c}"] for c in range(4)]
    assert numbers == sorted(numbers, reverse=True)  # long-tailed
    assert numbers[0] > 2 * numbers[-1]
    assert len(task_of(published, where="supercategory=Aves")) == numbers[0] + numbers[3]
    with pytest.raises(ValueError, match="expected supercategory to be one of Aves, Insecta, Plantae; got 'Fungi'"):
        task_of(published, where="supercategory=Fungi")
    with pytest.raises(ValueError, match="expected level to be a rank"):
        task_of(published, where="order=Owls")


def test_inaturalist_stand_in_is_the_same_every_time(published, tmp_path_factory):
    from inaturalist import write_synthetic

    again = tmp_path_factory.mktemp("again")
    write_synthetic(again, 30, side=40, classes=4)
    files = sorted(path.relative_to(again) for path in again.rglob("*.j*"))
    assert len(files) == 31
    assert all((again / file).read_bytes() == (published / file).read_bytes() for file in files)


def test_inaturalist_stand_in_may_copy_images_of_a_class(tmp_path):
    from inaturalist import task_of, write_synthetic

    write_synthetic(tmp_path, 30, side=40, classes=4, distinct=2)
    files = {path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    assert len(files) == 8
    assert len(task_of(tmp_path)) == 30


def test_inaturalist_stand_in_never_overwrites_annotations(published):
    from inaturalist import write_synthetic

    with pytest.raises(ValueError, match="expected an empty folder"):
        write_synthetic(published, 3)


def test_inaturalist_says_who_waits_for_whom(published, capsys):
    import inaturalist

    options = argparse.Namespace(
        arch="tiny", size=24, workers=1, batch_size=8, num_samples=24, repeats=1, device="cpu", synthetic=30
    )
    result = inaturalist.measure(inaturalist.task_of(published), options)
    assert result["images"] == 24
    assert 0 < result["waiting_share"] < 1
    inaturalist.report(result)
    printed = capsys.readouterr().out
    assert "device waits for images" in printed
    assert result["whole_split"]["images"] == 30
    assert "The split's 30 images would take" in printed


def test_feed_counts_decodes_and_bytes(tmp_path):
    import feed

    options = argparse.Namespace(images=None, count=8, repeats=1, kept=8)
    assert [row["value"] for row in feed.decodes(tmp_path / "decodes", options)] == [1, 1, 1]
    *speeds, of_image = feed.cache(tmp_path / "cache", options)
    assert len(speeds) == 3
    assert of_image["value"] == 3 * 224 * 224
    (used,) = feed.memory(tmp_path / "memory", options)
    assert used["value"] < 200


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning")
def test_decoders_are_compared_with_pils_pixels(tmp_path):
    import decoders
    from _photos import write_photos

    files = [path.read_bytes() for path in write_photos(tmp_path, 64, 2)]
    rows = {row["decoder"]: row for row in decoders.measure(files, 64, 1)}
    assert rows["PIL"]["same_pixels"]
    assert all(row["ms"]["median"] > 0 for row in rows.values())


def _record(result, benchmark="fisher_pass"):
    return {
        "command": f"python -m benchmarks.{benchmark} --repeats 3",
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
    import report

    (tmp_path / "cpu-some").mkdir()
    (tmp_path / "cpu-some" / "fisher_pass.json").write_text(json.dumps(_record(_pass_result(ratio, size))))
    lines = report.table(tmp_path).splitlines()
    (line,) = [line for line in lines if "pass ÷ plain step, ResNet-34, batch 16" in line]
    assert shown in line
    assert sum("not measured" in line for line in lines) == len(report.ROWS) - ("[1]" in shown)
    if "[1]" in shown:
        assert line.endswith("| `python benchmarks/fisher_pass.py --repeats 3` |")
        assert "[1] Some CPU, 2 threads; torch 2.14.1, Python 3.11; commit 012345678" in lines[-1]


def test_report_replaces_only_what_is_between_its_markers():
    import report

    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.with_table(page, "new") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    with pytest.raises(SystemExit, match="one is missing"):
        report.with_table("before", "new")


def test_a_command_of_an_old_record_names_today_s_script():
    from report import command

    old = "python -m benchmarks.operator --arch tiny"
    assert command({"command": old}) == "python benchmarks/filter_grad_sq.py --arch tiny"
    assert command({"command": "python benchmarks/peers.py"}) == "python benchmarks/peers.py"


def test_every_command_of_a_record_names_a_script():
    from report import command

    for file in (ROOT / "benchmarks" / "results").glob("*/*.json"):
        script = command(json.loads(file.read_text(encoding="utf-8"))).split()[1]
        assert (ROOT / script).is_file(), file
        assert file.stem.startswith(Path(script).stem)


def test_measurements_and_records_agree(monkeypatch, tmp_path):
    import report

    monkeypatch.setattr(report, "RESULTS", ROOT / "benchmarks" / "results")
    monkeypatch.setattr(sys, "argv", ["report", "--check"])
    report.main()
    stale, fresh = tmp_path / "measurements.md", report.PAGE.read_text(encoding="utf-8")
    stale.write_text(report.with_table(fresh, "old"), encoding="utf-8")
    monkeypatch.setattr(report, "PAGE", stale)
    with pytest.raises(SystemExit, match=r"disagree; run python benchmarks/report\.py"):
        report.main()
    monkeypatch.setattr(sys, "argv", ["report"])
    report.main()
    assert stale.read_text(encoding="utf-8") == fresh


def test_image_fisher_of_images_have_the_embedding_as_their_mean_and_are_kept(tmp_path, monkeypatch):
    import _image_fisher
    from cases import assert_near
    from small import Blobs, small_probe

    from task2vec_ext import EmbedSettings, HeadSettings, as_task, fisher_embed

    task, probe, one_head = (
        as_task(Blobs(n=60)),
        small_probe(),
        EmbedSettings(head=HeadSettings(l2=1e-2, cross_fit=None)),
    )
    found = _image_fisher.image_fisher(task, probe, estimator="signed", l2=1e-2, cache=tmp_path)
    assert_near(
        found.fisher.double().mean(0), fisher_embed(task, probe, settings=one_head, progress=False).fisher, 1e-5
    )
    monkeypatch.setattr(_image_fisher, "read", lambda *_: pytest.fail("computed again"))
    again = _image_fisher.image_fisher(task, probe, estimator="signed", l2=1e-2, cache=tmp_path)
    assert torch.equal(again.fisher, found.fisher)


def test_the_authors_batch_means_estimate_the_fisher_within_5_standard_errors():
    import _image_fisher
    import sample_size
    from small import Blobs, small_probe

    from task2vec_ext import as_task
    from task2vec_ext.data import Batch
    from task2vec_ext.fisher.per_sample import per_sample_fisher

    task, probe = as_task(Blobs(n=60)), small_probe()
    images = _image_fisher.read(task, probe)
    head = _image_fisher.fitted(probe, images, 1.0)
    truth = per_sample_fisher(probe, probe.layers(), head, Batch(*images), "exact").mean(0).sum()
    norms = sample_size._batch_means(probe, images, head, 200, torch.Generator().manual_seed(0)).sum(1)
    assert abs(norms.mean() - truth) < 5 * norms.std() / 200**0.5


def test_coverage_counts_intervals_that_hold_the_truth():
    import interval_coverage
    from _intervals import grouped

    random = torch.Generator().manual_seed(0)
    pools = [torch.rand(500, 30, generator=random) for _ in range(2)]
    truths = [pool.double().mean(0) for pool in pools]

    def draw(number, samples):
        return grouped(pools[number][torch.randint(500, (samples,), generator=random)])

    right = interval_coverage._count(iter([(0, 1)] * 40), truths, draw, 64)
    wrong = interval_coverage._count(iter([(0, 1)] * 40), [2 * truths[0], truths[1].flip(0)], draw, 64)
    assert right["norm"]["coverage"] > 0.8  # 95 % ± 3.4 %: more than four standard errors
    assert wrong["norm"]["coverage"] == 0


def test_the_nearest_are_found_among_drawn_tasks(tmp_path, monkeypatch):
    import nearest

    monkeypatch.setattr(nearest, "peak_memory", lambda *args, **kwargs: 0)  # a fresh process takes seconds
    monkeypatch.setattr(nearest, "ROWS", 50)
    monkeypatch.setattr(nearest.search, "CANDIDATES", 0)  # set by the benchmark
    real = torch.randn(6, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    real[0, :3] = 0
    result = nearest.measure(real, tasks=120, queries=4, candidates=[10, 120], folder=tmp_path)
    assert result["rounding"] < nearest.ROUNDING
    assert result["ways"]["shortlist of 120"]["recall"] == 1
    assert 0.5 < result["ways"]["shortlist of 10"]["recall"] <= 1
    drawn = nearest.draw(real, 50, torch.Generator().manual_seed(0))
    assert (drawn == 0).sum() in range(3, 3 * 50, 3)
    torch.testing.assert_close(drawn[drawn > 0].log().mean(), real[real > 0].log().mean(), atol=0.3, rtol=0)
