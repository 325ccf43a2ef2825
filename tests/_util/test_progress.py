import sys
import time

import pytest

from task2vec_ext._util import progress
from task2vec_ext._util.progress import library_progress, progress_bar


def work(enabled) -> None:
    with library_progress(2, 30, enabled) as told:
        with progress_bar("birds: features", 10, told.of_pass) as advance:
            advance(10)
        told.ended("birds", 10, None)
        told.ended("cars", 20, "ValueError: no images")


def test_a_file_gets_a_line_a_task_where_asked_for(capsys):
    work(True)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("1 of 2 tasks, 10 of 30 images, 0:00:00, about 0:00:00 left: birds done")
    assert second.startswith("2 of 2 tasks, 1 failed, 30 of 30 images")
    assert second.endswith("cars failed: ValueError: no images")


def test_a_file_gets_a_line_every_so_often(capsys, monkeypatch):
    now = iter([0, 10, 29, 31, 40, 62]).__next__
    monkeypatch.setattr(time, "monotonic", lambda: float(now()))
    with progress_bar("birds: features", 5000, True) as advance:
        for _ in range(3):  # at 10, 29 and 31 seconds
            advance(1000)
    assert capsys.readouterr().err == "birds: features, 3,000 of 5,000\n"


def test_tasks_that_were_done_before_count(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    with library_progress(12, 30, True, before=10) as told:
        with progress_bar("birds: features", 10, told.of_pass) as advance:
            advance(4)
        told.ended("birds", 10, None)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "task 11 of 12, birds: features, 4 of 10"
    assert second.startswith("11 of 12 tasks, 10 of 30 images")


def test_a_file_gets_nothing_unasked(capsys):
    work(None)
    work(False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("enabled", [True, None])
def test_a_terminal_gets_bars_over_all_tasks_and_the_pass(capsys, monkeypatch, enabled):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    work(enabled)
    shown = capsys.readouterr().err
    assert "2 of 2 tasks, 1 failed" in shown
    assert "30/30" in shown
