"""What the tests of the benchmarks share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # as a script has it


@pytest.fixture
def setup():
    from _step import Setup

    return Setup("tiny", batch_size=2, size=24)
