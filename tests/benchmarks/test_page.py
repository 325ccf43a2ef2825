"""The site's page of records: every benchmark's result, with all its figures."""

import json
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def page():
    from page import page

    return page


def test_every_benchmark_s_record_is_on_the_page(page):
    text = page(BENCHMARKS / "results", (BENCHMARKS / "README.md").read_text(encoding="utf-8"))
    records = sorted((BENCHMARKS / "results").glob("*/*.json"))
    assert re.findall(r"^### (\w+)$", text, re.M) == [path.stem for path in records]
    assert all(f"results/{path.parent.name}/{path.name}" in text for path in records)


def test_a_record_is_shown_with_all_its_figures(tmp_path, page):
    result = {
        "threads": 2,
        "ways": {
            "ours": {"seconds": {"median": 0.5, "quartiles": [0.4, 0.625], "n": 3}},
            "theirs": {"peak_bytes": 1234},
        },
        "rows": [{"task": "a|b", "curve": [{"samples": 1, "error": 0.25}, {"samples": 2, "error": 1e-9}]}],
    }
    record = {
        "benchmark": "asked_twice",
        "command": "python benchmarks/asked.py",
        "commit": "0123456789abcdef",
        "hardware": {"cpu": "a CPU", "cores": 4, "gpu": None},
        "versions": {"torch": "2", "python": "3"},
        "result": result,
    }
    (tmp_path / "cpu-x").mkdir()
    (tmp_path / "cpu-x" / "asked_twice.json").write_text(json.dumps(record))
    text = page(tmp_path, "| `python benchmarks/asked.py --data DIR` | Why? |\n")
    for line in (
        "Why? `python benchmarks/asked.py`",
        "a CPU, 4 threads; torch 2, Python 3; commit 012345678 · [JSON](results/cpu-x/asked_twice.json)",
        "| threads | 2 |",
        "| ways | seconds | peak bytes |",
        "| ours | 0.5 (0.4–0.625) |  |",
        "| theirs |  | 1,234 |",
        "| a\\|b | 1 | 0.25 |",
        "| a\\|b | 2 | 1e-09 |",
    ):
        assert line in text.splitlines(), line
    with pytest.raises(SystemExit, match=r"expected a row for asked_twice in benchmarks/README\.md"):
        page(tmp_path, "")
