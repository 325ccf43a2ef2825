import hashlib
import shutil

import pytest
from small import Blobs, small_probe

from task2vec_ext import EmbedSettings, Library, as_task, build_library
from task2vec_ext.library import merge, merge_libraries


def tasks_of(*numbers: int, n: int = 12) -> list:
    """Tasks in memory that differ."""
    return [as_task(Blobs(n=n, seed=t), name=f"task{t}") for t in numbers]


def sums(library: Library) -> dict[str, str]:
    """Checksums of all embeddings, by task."""
    return {e.name: hashlib.sha256(library.file(e).read_bytes()).hexdigest() for e in library.entries()}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[Library]:
    """Two libraries with a task in common."""
    root = tmp_path_factory.mktemp("parts")
    return [build_library(tasks_of(*numbers), root / f"{numbers}", small_probe()) for numbers in ((0, 1), (1, 2))]


def test_a_merged_library_has_the_embeddings_of_all_byte_for_byte(parts, tmp_path):
    merged = merge_libraries([part.folder for part in parts], tmp_path / "all")
    assert sums(merged) == sums(parts[0]) | sums(parts[1])
    assert merged.made_with == parts[0].made_with
    assert merged.verify() == []
    whole = build_library(tasks_of(0, 1, 2), tmp_path / "whole", small_probe())
    assert sums(whole) == sums(merged)
    assert {f.name for f in (tmp_path / "all").iterdir()} <= {"library.json", "embeddings", "failures", "cache"}


def test_a_merge_that_was_killed_continues(parts, tmp_path, monkeypatch):
    copy, copied = shutil.copyfile, []

    def killed(source, target):
        if copied:
            raise KeyboardInterrupt
        copied.append(source)
        copy(source, target)

    monkeypatch.setattr(merge.shutil, "copyfile", killed)
    folders = [part.folder for part in parts]
    with pytest.raises(KeyboardInterrupt):
        merge_libraries(folders, tmp_path / "all")
    assert Library(tmp_path / "all").names() == ["task0"]
    monkeypatch.setattr(merge.shutil, "copyfile", lambda *pair: copied.append(pair[0]) or copy(*pair))
    assert merge_libraries(folders, tmp_path / "all").names() == ["task0", "task1", "task2"]
    assert len(copied) == 3
    merge_libraries(folders, tmp_path / "all")
    assert len(copied) == 3


def test_a_library_can_be_merged_into_another(parts, tmp_path):
    target = shutil.copytree(parts[0].folder, tmp_path / "target")
    assert merge_libraries([parts[1].folder], target).names() == ["task0", "task1", "task2"]


def test_different_embeddings_of_a_task_are_refused_before_anything_is_written(parts, tmp_path):
    other = build_library(tasks_of(1, 2, 3, n=15), tmp_path / "other", small_probe())
    with pytest.raises(ValueError, match=r"different ones for 'task1' .*, 'task2' .*; remove") as error:
        merge_libraries([parts[0].folder, parts[1].folder, other.folder], tmp_path / "all")
    assert "task3" not in str(error.value)
    assert not (tmp_path / "all").exists()


def test_other_settings_are_refused_before_anything_is_written(parts, tmp_path):
    other = build_library(tasks_of(5), tmp_path / "other", small_probe(), settings=EmbedSettings(seed=3))
    with pytest.raises(ValueError, match=r"differ: seed: 0 against 3"):
        merge_libraries([parts[0].folder, other.folder], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    before = sums(other)
    with pytest.raises(ValueError, match=r"differ: seed: 3 against 0"):
        merge_libraries([parts[0].folder], other.folder)
    assert sums(Library(other.folder)) == before


def test_damaged_libraries_and_what_is_none_are_refused(parts, tmp_path):
    bad = Library(shutil.copytree(parts[0].folder, tmp_path / "bad"))
    file = bad.file(bad.entries()[0])
    file.write_bytes(file.read_bytes()[:-1])
    for folders, message in (
        ([bad.folder], file.name),
        ([tmp_path / "none"], "found none"),
        ([], "one library or more"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_libraries(folders, tmp_path / "all")
    with pytest.raises(TypeError, match="name two or more"):
        merge_libraries(str(bad.folder), tmp_path / "all")
    assert not (tmp_path / "all").exists()
