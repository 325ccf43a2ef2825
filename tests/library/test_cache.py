import shutil
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small import Blobs, small_probe

from task2vec_ext import Library, as_task, build_library
from task2vec_ext.library import cache as _cache


def segments(library: Library) -> list[Path]:
    return sorted((library.folder / "cache").glob("rows-*.safetensors"))


def read(monkeypatch) -> list[str]:
    """Return a list that will hold the files that are read into the cache."""
    files, one = [], _cache.Cache._read
    monkeypatch.setattr(_cache.Cache, "_read", lambda self, file: files.append(file) or one(self, file))
    return files


def test_only_what_changed_is_read_again(built, monkeypatch):
    expected, files = built.nearest("task1"), read(monkeypatch)
    assert Library(built.folder).nearest("task1") == expected
    assert files == []
    changed = built.file(built.entries()[0])
    changed.touch()
    assert built.nearest("task1") == expected
    assert files == [f"embeddings/{changed.name}"]
    built.entries()
    assert len(files) == 1


def test_a_deleted_cache_loses_nothing(built):
    expected, entries = built.nearest("task1"), built.entries()
    for library in (built, Library(built.folder)):
        shutil.rmtree(built.folder / "cache")
        assert library.nearest("task1") == expected
        assert library.entries() == entries
        assert library.verify() == []


def damage_size(file):
    file.write_bytes(file.read_bytes()[:-4])


def damage_entries(file):
    data = file.read_bytes()
    file.write_bytes(data.replace(b"task1", b"task9"))


def damage_header(file):
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def tensors_of(file, **changes):
    tensors = safetensors.torch.load_file(file)
    with safetensors.safe_open(file, "pt") as opened:
        header = opened.metadata()
    safetensors.torch.save_file(tensors | changes, file, header)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\x80\x04N."),
        damage_size,
        damage_entries,
        damage_header,
        lambda file: tensors_of(file, fisher=torch.ones(5, 3)),
        lambda file: tensors_of(file, sketch=torch.ones(5, _cache.SKETCH, dtype=torch.float64)),
        lambda file: safetensors.torch.save_file({"fisher": torch.ones(5, 3)}, file),
    ],
    ids=["empty", "pickle", "cut", "entries", "header", "filters", "dtype", "other"],
)
def test_a_damaged_or_foreign_file_of_the_cache_is_not_used(built, damage):
    expected, entries = built.nearest("task1"), built.entries()
    for file in segments(built):
        damage(file)
    again = Library(built.folder)
    assert again.entries() == entries
    assert again.nearest("task1") == expected


def test_embeddings_of_other_lengths_than_the_library_says_are_damaged(built):
    settings, filters = built.folder / "library.json", built.made_with.filters
    settings.write_text(settings.read_text().replace(f'"filters": {filters}', f'"filters": {filters + 1}'))
    again = Library(built.folder)
    assert again.status() == {"done": 0, "failed": 0, "damaged": 5}
    assert f"filters: {filters + 1} against {filters}" in again.entries()[0].error


def test_verify_compares_the_cache_with_the_embeddings(built):
    built.entries()
    (file,) = segments(built)
    rows = safetensors.torch.load_file(file)["fisher"]
    tensors_of(file, fisher=rows * 2)
    again = Library(built.folder)
    assert len(again.verify()) == 5
    assert "delete" in again.verify()[0]
    shutil.rmtree(built.folder / "cache")
    assert again.verify() == []


def test_many_small_files_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "_BYTES", 12 * 4 * 28)  # of twelve embeddings
    tasks = [as_task(Blobs(n=6, seed=t), name=f"task{t:02}") for t in range(15)]
    whole = build_library(tasks, tmp_path / "whole", small_probe())
    grows = shutil.copytree(whole.folder, tmp_path / "grows", ignore=shutil.ignore_patterns("cache", "task*"))
    for count, entry in enumerate(whole.entries(), 1):
        shutil.copy(whole.file(entry), grows / entry.file)
        library = Library(grows)
        assert library.names() == [task.name for task in tasks[:count]]
        assert len(segments(library)) <= _cache._MOST_SMALL + 2
    assert library.nearest("task03") == whole.nearest("task03")
    library.remove([task.name for task in tasks[:-1]])
    assert library.names() == Library(grows).names() == ["task14"]


def test_a_library_that_joins_its_files_while_another_searches_gives_the_same(built, monkeypatch):
    expected = built.nearest("task1")
    once = _cache.Segment.rows

    def gone(self, *arguments):
        monkeypatch.setattr(_cache.Segment, "rows", once)
        shutil.rmtree(built.folder / "cache")
        return once(self, *arguments)

    monkeypatch.setattr(_cache.Segment, "rows", gone)
    assert built.nearest("task1") == expected


def test_a_folder_that_cannot_be_written_to_is_read(built, monkeypatch):
    expected = built.nearest("task1")
    shutil.rmtree(built.folder / "cache")
    monkeypatch.setattr(_cache, "atomic_path", read_only)  # root may write everywhere
    again = Library(built.folder)
    assert again.nearest("task1") == expected
    assert again.verify() == []
    files = read(monkeypatch)
    again.entries()
    assert files == []
    assert stat.S_ISDIR(built.folder.stat().st_mode)


def read_only(path):
    raise PermissionError(13, "read-only", str(path))
