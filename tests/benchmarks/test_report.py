"""The records' own lines and the table that report.py writes from them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
