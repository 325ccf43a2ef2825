import dataclasses
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from libraries import states, sums, tasks_of, watch
from PIL import Image
from small import Blobs, small_probe, small_resnet

from task2vec_ext import Embedding, EmbedSettings, HeadSettings, Library, as_task, build_library
from task2vec_ext.data import identity
from task2vec_ext.embed import fisher_embed
from task2vec_ext.library.folder import Folder, file_stem
from task2vec_ext.library.settings import LibrarySettings


def test_a_library_holds_what_fisher_embed_gives(built):
    for task in tasks_of(5):
        expected = fisher_embed(task, small_probe(), progress=False)
        assert torch.equal(built.embedding(task.name).fisher, expected.fisher)
    first = built.entries()[0]
    assert (first.name, first.state, first.num_samples, first.num_outputs) == ("task0", "done", 12, 3)
    assert first.norm == built.embedding("task0").norm
    assert built.verify() == []


@pytest.mark.parametrize(
    ("probe", "options", "what"),
    [
        (small_probe(), {"seed": 1}, "seed: 0 against 1"),
        (small_probe(), {"head": HeadSettings(l2=0.5)}, "head l2: None against 0.5"),
        (small_probe(), {"estimator": "exact"}, "estimator: signed against exact"),
        (small_probe(), {"layers": ["layer4"]}, "layers: None against"),
        (small_probe(small_resnet(seed=1)), {}, "probe: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_library_of_other_settings_is_not_added_to(built, probe, options, what):
    with pytest.raises(ValueError, match=what):
        build_library(tasks_of(6), built.folder, probe, settings=EmbedSettings(**options))
    assert len(built.entries()) == 5


def test_a_library_of_a_newer_format_is_refused(built, tmp_path):
    file = built.folder / "library.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 4}))
    with pytest.raises(ValueError, match=r"expected format 3 or older, .* has format 4"):
        Library(built.folder)
    with pytest.raises(ValueError, match="format 4"):
        build_library(tasks_of(6), built.folder, small_probe())
    for damaged in ("", "[]", '{"format": 3}', '{"format": 3, "library": {}}', "\0"):
        file.write_text(damaged)
        with pytest.raises(ValueError, match="expected the settings of a library in"):
            Library(built.folder)
    with pytest.raises(ValueError, match="expected a library at"):
        Library(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def as_of_version(version: int, built: Library) -> None:
    """Make of a library one that an earlier version wrote: an index in SQLite, of which the settings are read."""
    record = built.made_with.to_json()
    if version == 1:  # one flat record, of fisher_embed's options at that time
        settings, probe = record["settings"], record["probe"]
        head = settings.pop("head")
        record = {
            **settings,
            "probe": probe,
            "preprocess": probe.pop("preprocess"),
            "filters": record["filters"],
            "head_method": head["method"],
            "head_l2": head["l2"],
            "class_balanced": head["class_balanced"],
            "error_bars": True,
        }
    for part in ("library.json", "cache", "failures"):
        (shutil.rmtree if part != "library.json" else os.unlink)(built.folder / part)
    with sqlite3.connect(built.folder / "index.sqlite") as db:
        db.execute("CREATE TABLE settings (format INTEGER, settings TEXT)")
        db.execute("INSERT INTO settings VALUES (?, ?)", (version, json.dumps(record)))
        db.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, name TEXT, state TEXT, error TEXT)")
        db.execute("INSERT INTO tasks VALUES (9, 'broken', 'failed', 'ValueError: no image')")
    db.close()


@pytest.mark.parametrize("version", [1, 2])
def test_libraries_of_versions_0_1_and_0_2_are_read_and_added_to(tmp_path, version):
    one_head = EmbedSettings(head=HeadSettings(cross_fit=None))
    built = build_library(tasks_of(5), tmp_path / "library", small_probe(), settings=one_head)
    expected, before = built.nearest("task1"), sums(built)
    as_of_version(version, built)
    old = Library(built.folder)
    assert old.made_with == built.made_with
    assert old.nearest("task1") == expected
    assert (old.status()["failed"], old.entries()[0].error) == (1, "ValueError: no image")
    with pytest.raises(ValueError, match="head cross_fit: None against 5"):
        build_library(tasks_of(6), built.folder, small_probe())
    assert not (built.folder / "library.json").exists()
    broken = as_task(Blobs(n=6), name="broken")
    again = build_library([*tasks_of(6), broken], built.folder, small_probe(), settings=one_head)
    assert again.status() == {"done": 6, "failed": 1, "damaged": 0}
    assert {name: sums(again)[name] for name in before} == before


def test_an_index_of_something_else_is_refused(tmp_path):
    (tmp_path / "index.sqlite").write_bytes(b"something else, and long enough to be taken for a database" * 20)
    with pytest.raises(ValueError, match=r"expected the index of a library at .*; delete it and build again"):
        Library(tmp_path)


def test_a_library_without_an_embedding_takes_other_settings(tmp_path):
    Folder(tmp_path).create(LibrarySettings.of(small_probe(), EmbedSettings(seed=1)))
    assert build_library(tasks_of(1), tmp_path, small_probe()).settings == EmbedSettings()


def test_tasks_of_version_0_2_are_kept_and_known_better_from_now_on(folders, tmp_path, monkeypatch):
    images = [(Image.effect_noise((40, 40), 90), i % 2) for i in range(6)]  # of these, the same every time

    def build():
        return build_library([folders[0], as_task(images, name="memory")], tmp_path, "tiny", progress=False)

    built = build()
    for entry in built.entries():  # files were known by names, sizes and labels, images in memory by their name
        old = None if entry.name == "memory" else entry.digest.split("-")[0]
        dataclasses.replace(Embedding.load(built.file(entry)), task_digest=old).save(built.file(entry))
    shutil.rmtree(tmp_path / "cache")
    before = sums(built)
    assert sums(build()) == before
    assert (tmp_path / "cache" / "times" / file_stem("task0")).read_text().count("-") == 3


def test_the_times_of_files_spare_reading_them_and_are_no_part_of_the_library(folders, tmp_path, monkeypatch):
    task = shutil.copytree(folders[0], tmp_path / "task0")
    before = sums(build_library([task], tmp_path / "library", "tiny"))
    read, contents = [], identity._contents
    monkeypatch.setattr(identity, "_contents", lambda paths: read.append(paths) or contents(paths))
    build_library([task], tmp_path / "library", "tiny")
    assert read == []
    for file in task.rglob("*.png"):
        os.utime(file, (1, 1))
    assert sums(build_library([task], tmp_path / "library", "tiny")) == before
    assert len(read) > 0


def test_names_that_are_no_utf_8_and_names_that_look_alike_keep_apart(tmp_path):
    names = ["\udcff\udcfe", "\u00e9", "e\u0301", "a b", "a_b", "A_B", "名" * 100, "x" * 300, "../up"]
    named = [as_task(Blobs(n=6, seed=i), name=name) for i, name in enumerate(names)]
    result = build_library(named, tmp_path / "library", small_probe())
    assert result.names() == sorted(names)
    files = [Path(entry.file).name for entry in result.entries()]
    assert len({file.lower() for file in files}) == len(names)
    assert all(file.isascii() and len(file) < 200 for file in files)  # no file system takes two of them for one
    assert result.verify() == []
    assert {file.name for file in tmp_path.iterdir()} == {"library"}
    assert result.nearest(names[0], k=1)[0].name in names
    result.remove(names[:1])
    assert names[0] not in states(result)


def test_verify_finds_all_that_is_wrong(built):
    files = [built.file(entry) for entry in built.entries()]
    flip(files[0], -1)
    files[1].write_bytes(files[1].read_bytes()[:-100])  # half-copied
    shutil.copy(files[2], files[2].with_name("copy.safetensors"))
    (built.folder / "embeddings" / "stray.txt").touch()
    dataclasses.replace(built.embedding("task4"), settings=EmbedSettings(seed=1)).save(files[4])
    wrong = built.verify()
    for name, what in [
        (files[0].name, "checksum does not fit"),
        (files[1].name, "damaged"),
        ("copy.safetensors", "another file has task"),
        (files[4].name, "seed: 0 against 1"),
        ("stray.txt", "no embedding"),
    ]:
        assert any(name in line and what in line for line in wrong), (name, wrong)
    assert len(wrong) == 5
    assert states(built)["task2"] == states(built)["task3"] == "done"
    # As the messages say:
    for name in ("copy.safetensors", "stray.txt"):
        (built.folder / "embeddings" / name).unlink()
    again = build_library(tasks_of(5), built.folder, small_probe())
    assert again.verify() == []
    assert again.names() == [f"task{t}" for t in range(5)]


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_lost_settings_cost_no_embedding_of_the_same_settings(built, monkeypatch):
    before = sums(built)
    embedded = watch(monkeypatch)
    (built.folder / "library.json").unlink()
    again = build_library(tasks_of(5), built.folder, small_probe())
    assert (embedded, sums(again), again.verify()) == ([], before, [])
    (built.folder / "library.json").unlink()
    other = build_library(tasks_of(5), built.folder, small_probe(), settings=EmbedSettings(seed=1))
    assert len(embedded) == 5
    assert sums(other) != before


def test_what_is_removed_is_gone_until_it_is_built_again(built):
    nearest = built.nearest("task0", k=1)[0].name
    built.remove([nearest])
    assert nearest not in [name for name, _ in built.nearest("task0")]
    assert built.verify() == []
    with pytest.raises(ValueError, match=f"expected a task of .*, got '{nearest}'"):
        built.remove(["task0", nearest])
    assert "task0" in states(built)
    again = build_library(tasks_of(5), built.folder, small_probe())
    assert again.nearest("task0", k=1)[0].name == nearest
    assert again.verify() == []
