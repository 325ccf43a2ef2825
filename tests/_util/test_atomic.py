import errno
import os
import shutil
import signal
import sys
import time

import pytest

from task2vec_ext._util import atomic
from task2vec_ext._util.atomic import atomic_path, remove_leftovers


def write(target, text="new"):
    with atomic_path(target) as temporary:
        temporary.write_text(text)


@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt, ValueError("broken"), OSError(errno.ENOSPC, "No space left")]
)
def test_atomic_path_leaves_the_old_file_and_no_other_when_interrupted(tmp_path, interruption):
    target = tmp_path / "matrix.png"
    target.write_text("old")
    expected = interruption if isinstance(interruption, type) else type(interruption)

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half of the n")
            raise interruption

    with pytest.raises(expected) as caught:
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["matrix.png"]
    if expected is OSError:
        assert caught.value.errno == errno.ENOSPC
        assert "matrix.png: No space left; nothing was written" in str(caught.value)


def test_atomic_path_replaces_the_file_in_one_step_with_the_usual_permissions(tmp_path):
    target, plain = tmp_path / "matrix.png", tmp_path / "plain"
    target.write_text("old")
    plain.write_text("")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert (temporary.parents[1], temporary.suffix) == (tmp_path, ".png")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert target.stat().st_mode == plain.stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["matrix.png", "plain"]


def test_atomic_path_takes_the_longest_legal_name_and_follows_a_link(tmp_path):
    real, link = tmp_path / ("n" * 251 + ".png"), tmp_path / "link"
    link.symlink_to(real)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_atomic_path_names_a_missing_folder_and_refuses_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no/where\.png.*nothing was written"):
        write(tmp_path / "no" / "where.png")
    for target in (tmp_path, os.devnull):
        with pytest.raises(ValueError, match="expected a file to write"), atomic_path(target):
            pytest.fail("the block must not run")


class Writer:
    """A process that writes half of a file, and then waits for a word."""

    def __init__(self, target):
        halfway, told = os.pipe(), os.pipe()
        self.process = os.fork()
        if not self.process:
            try:
                with atomic_path(target) as temporary:
                    temporary.write_text("half")
                    os.write(halfway[1], b".")
                    os.read(told[0], 1)
                    temporary.write_text("whole")
            finally:
                os._exit(0)
        os.read(halfway[0], 1)
        self.word = told[1]

    def kill(self):
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)

    def finish(self):
        os.write(self.word, b".")
        os.waitpid(self.process, 0)


forks = pytest.mark.skipif(sys.platform == "win32", reason="needs os.fork")


@forks
def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    killed, living = Writer(tmp_path / "killed"), Writer(tmp_path / "living")
    killed.kill()
    assert len(os.listdir(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert len(os.listdir(tmp_path)) == 1
    living.finish()
    assert os.listdir(tmp_path) == ["living"]
    assert (tmp_path / "living").read_text() == "whole"


@forks
def test_the_next_process_that_writes_into_the_folder_removes_it(tmp_path):
    Writer(tmp_path / "file").kill()
    atomic._remove_leftovers_once.cache_clear()  # as in a new process
    write(tmp_path / "another")
    assert os.listdir(tmp_path) == ["another"]


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    locked, places = atomic.locked, []

    def after_removal(place, *words):
        places.append(place)
        if len(places) == 1:
            shutil.rmtree(place)
        return locked(place, *words)

    monkeypatch.setattr(atomic, "locked", after_removal)
    write(tmp_path / "file")
    assert len(set(places)) == 2
    assert (tmp_path / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_files_of_version_0_2_are_removed_after_a_day(tmp_path):
    old, young = tmp_path / ".task2vec-0123456789abcdef.png", tmp_path / ".task2vec-0123456789abcdee.png"
    for file, age in ((old, 25), (young, 23)):
        file.write_text("half")
        os.utime(file, (time.time() - age * 3600,) * 2)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [young.name]


def test_a_file_system_without_locks_is_written_to_and_leftovers_go_after_a_day(tmp_path, monkeypatch):
    def refused(place, who, busy):  # as SQLite does where `fcntl` fails
        raise RuntimeError("disk I/O error")

    monkeypatch.setattr(atomic, "locked", refused)
    old, young = tmp_path / ".task2vec-0123456789abcdef", tmp_path / ".task2vec-0123456789abcdee"
    for place, age in ((old, 25), (young, 23)):
        place.mkdir()
        os.utime(place, (time.time() - age * 3600,) * 2)
    atomic._remove_leftovers_once.cache_clear()
    write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == [young.name, "file"]
