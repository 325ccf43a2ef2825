import os
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from task2vec_ext import Task2VecWarning
from task2vec_ext.data import ImageCache

SIZE = 3 * 4 * 4


def crop(number, side=4):
    return torch.full((3, side, side), number, dtype=torch.uint8)


def key(number):
    """What stands for a file."""
    return number.to_bytes(16, "little")


def filled(cache, numbers):
    for number in numbers:
        cache.put(key(number), crop(number), number)
    return cache


def held(cache, numbers):
    """The numbers whose crops the cache holds, each checked."""
    found = []
    for number in numbers:
        if cache.peak(key(number)) is None:
            assert cache.get(key(number), (3, 4, 4)) is None
        elif (got := cache.get(key(number), (3, 4, 4))) is not None:
            assert torch.equal(got, crop(number))
            assert cache.peak(key(number)) == number
            found.append(number)
    return found


@pytest.mark.parametrize(("memory", "disk", "kept"), [(0, 0, 0), (2, 0, 2), (0, 3, 3), (2, 3, 5), (9, 9, 9)])
def test_crops_go_to_memory_then_to_the_file_then_nowhere(memory, disk, kept):
    cache = filled(ImageCache(memory * SIZE, disk * SIZE), range(9))
    assert held(cache, range(9)) == list(range(kept))
    cache.close()
    assert held(cache, range(9)) == []


def test_crops_of_earlier_tasks_are_given_up_the_oldest_first_and_none_of_the_present_one():
    cache = filled(ImageCache(2 * SIZE, 2 * SIZE), range(4))
    cache.begin_task()
    assert held(cache, [0]) == [0]  # the present task uses it, too
    filled(cache, range(4, 9))
    assert held(cache, range(9)) == [0, 4, 5, 6]


def test_crops_of_other_sizes_may_take_turns():
    cache = filled(ImageCache(0, 10 * SIZE), range(5))
    cache.begin_task()
    cache.put(key(20), crop(20, 8), 20)
    assert torch.equal(cache.get(key(20), (3, 8, 8)), crop(20, 8))
    assert cache.get(key(4), (3, 8, 8)) is None  # of another size
    assert held(cache, range(5)) == [0, 1, 2, 3, 4]
    cache.begin_task()
    cache.put(key(21), crop(21, 8), 21)  # in place of the oldest
    assert cache.peak(key(20)) is None


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name are Linux's")
def test_the_temporary_file_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    cache = filled(ImageCache(0, 9 * SIZE), range(3))
    assert list(tmp_path.iterdir()) == []
    assert held(cache, range(3)) == [0, 1, 2]


def test_a_full_disk_is_told_once_and_what_was_written_stays(monkeypatch):
    cache = filled(ImageCache(0, 9 * SIZE), range(2))

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    cache._file.file = Full(cache._file.file)
    with pytest.warns(Task2VecWarning, match=r"could not write the temporary file \(No space left") as told:
        filled(cache, range(2, 5))
    assert len(told) == 1
    assert held(cache, range(5)) == [0, 1]


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="sizes >= 0 bytes, got max_memory=-1"):
        ImageCache(-1)


def test_a_cache_reaches_another_process_empty_with_its_sizes_and_folder(tmp_path):
    cache = pickle.loads(pickle.dumps(filled(ImageCache(5 * SIZE, 7 * SIZE, tmp_path), [1])))
    assert (cache.max_memory, cache.max_disk, cache.folder) == (5 * SIZE, 7 * SIZE, tmp_path)
    assert held(cache, [1]) == []


@pytest.mark.parametrize("memory", [0, 99])
def test_a_folder_outlives_the_run(tmp_path, memory):
    one, other = ImageCache(0, 99 * SIZE, tmp_path), ImageCache(memory * SIZE, 99 * SIZE, tmp_path)
    filled(one, range(3))
    assert held(one, range(3)) == [0, 1, 2]  # also before it is written
    one.flush()
    assert held(one, range(3)) == [0, 1, 2]
    assert held(other, range(3)) == []
    other.begin_task()
    assert held(other, range(3)) == held(other, range(3)) == [0, 1, 2]
    assert held(ImageCache(0, 99 * SIZE, tmp_path), range(4)) == [0, 1, 2]
    assert [file.suffix for file in tmp_path.iterdir()] == [".crops"]


def test_a_folder_takes_no_more_than_its_size_and_nothing_that_is_no_file(tmp_path):
    cache = filled(ImageCache(0, 2 * SIZE, tmp_path), range(4))
    cache.put(("list", 1), crop(9), 9)
    cache.flush()
    assert held(ImageCache(0, 9 * SIZE, tmp_path), range(4)) == [0, 1]


@pytest.mark.parametrize("damage", ["bytes", "cut short", "foreign", "removed"])
def test_nothing_wrong_is_read_from_a_damaged_folder(tmp_path, damage):
    cache = filled(ImageCache(0, 99 * SIZE, tmp_path), range(3))
    cache.flush()
    (file,) = tmp_path.iterdir()
    later = ImageCache(0, 99 * SIZE, tmp_path) if damage == "removed" else None
    content = file.read_bytes()
    if damage == "bytes":
        place = content.index(b"\x01" * SIZE)
        file.write_bytes(content[:place] + b"\x07" + content[place + 1 :])
    elif damage == "cut short":
        file.write_bytes(content[:-1])
    elif damage == "foreign":
        file.write_bytes(b"crops of potatoes")
    else:
        file.unlink()
    later = later or ImageCache(0, 99 * SIZE, tmp_path)
    assert held(later, range(3)) == ([0, 2] if damage == "bytes" else [])
    filled(later, range(3))  # decoded again
    later.flush()
    assert held(ImageCache(0, 99 * SIZE, tmp_path), range(3)) == [0, 1, 2]


def test_a_folder_that_cannot_be_written_is_told_once_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(Task2VecWarning, match=r"could not write into .*: no more images are kept there"):
        cache = ImageCache(0, 99 * SIZE, tmp_path / "file" / "folder")
    filled(cache, range(3))
    cache.flush()  # a second warning would be an error
    assert held(cache, range(3)) == [0, 1, 2]  # in the temporary file


def test_a_folder_that_fills_up_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch):
    cache = filled(ImageCache(0, 99 * SIZE, tmp_path), range(2))
    cache.flush()

    def full(tensors, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("task2vec_ext.data.crop_folder.save_file", full)
    filled(cache, range(2, 4))
    with pytest.warns(Task2VecWarning, match="No space left on device"):
        cache.flush()
    filled(cache, range(4, 6))
    cache.flush()  # a second warning would be an error
    assert held(cache, range(6)) == [0, 1, 4, 5]  # 2 and 3 will be decoded again
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_process_that_is_killed_while_it_writes_leaves_nothing_wrong(tmp_path, number):
    script = f"""
        import os, signal, torch
        from task2vec_ext.data import ImageCache, crop_folder
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
        save = crop_folder.save_file
        def killed(tensors, file):
            file.write_bytes(b"half")
            os.kill(os.getpid(), {int(number)})
            save(tensors, file)
        cache = ImageCache(0, 1 << 30, {str(tmp_path)!r})
        for number in range(3):
            cache.put(number.to_bytes(16, "little"), torch.full((3, 4, 4), number, dtype=torch.uint8), number)
        crop_folder.save_file = killed
        cache.flush()
        print("not reached")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == -number
    assert "not reached" not in done.stdout
    left = [path.name for path in tmp_path.iterdir() if path.suffix != ".crops"]
    assert len(left) == (number == signal.SIGKILL)
    later = ImageCache(0, 99 * SIZE, tmp_path)
    assert held(later, range(3)) == ([] if number == signal.SIGKILL else [0, 1, 2])
    filled(later, [3])
    later.flush()  # which removes what the killed process left
    assert {path.suffix for path in tmp_path.iterdir()} == {".crops"}
