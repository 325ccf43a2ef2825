import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small import Blobs, small_probe, small_resnet

from task2vec_ext import Embedding, EmbedSettings, HeadSettings, Library, as_task, build_library, load_probe
from task2vec_ext._util import atomic as _atomic
from task2vec_ext.data import identity
from task2vec_ext.embed import embed_task, fisher_embed
from task2vec_ext.library import build as library_build
from task2vec_ext.library import cache as _cache
from task2vec_ext.library import folder as _folder
from task2vec_ext.library import library
from task2vec_ext.library.folder import Folder, file_stem
from task2vec_ext.library.settings import LibrarySettings


def tasks_of(count: int, n: int = 12) -> list:
    """So many tasks in memory that differ."""
    return [as_task(Blobs(n=n, noise=0.5 + t, seed=t), name=f"task{t}") for t in range(count)]


@pytest.fixture
def built(tmp_path) -> Library:
    """Five embedded tasks in memory."""
    return build_library(tasks_of(5), tmp_path / "library", small_probe())


def states(built: Library) -> dict[str, str]:
    return {entry.name: entry.state for entry in built.entries()}


def sums(built: Library) -> dict[str, str]:
    """Checksums of all files, by task."""
    files = {entry.name: built.file(entry) for entry in built.entries()}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def watch(monkeypatch) -> list[str]:
    """Return a list that will hold the names of the tasks that are embedded."""
    embedded = []

    def watched(task, *arguments, **options):
        result = embed_task(task, *arguments, **options)
        embedded.append(task.name)
        return result

    monkeypatch.setattr(library_build, "embed_task", watched)
    return embedded


def test_a_library_holds_what_fisher_embed_gives(built):
    for task in tasks_of(5):
        expected = fisher_embed(task, small_probe(), progress=False)
        assert torch.equal(built.embedding(task.name).fisher, expected.fisher)
    first = built.entries()[0]
    assert (first.name, first.state, first.num_samples, first.num_outputs) == ("task0", "done", 12, 3)
    assert first.norm == built.embedding("task0").norm
    assert built.verify() == []


def test_a_build_embeds_only_what_is_not_there(built, monkeypatch):
    before = sums(built)
    embedded = watch(monkeypatch)
    again = build_library(tasks_of(7), built.folder, small_probe())
    assert embedded == ["task5", "task6"]
    assert {name: sums(again)[name] for name in before} == before


# -- killed ------------------------------------------------------------------------------------------------------------

_WATCHED = {module.__file__ for module in (library, library_build, _folder, _cache, _atomic)}


def kill_at(line: int) -> None:
    """Have the process killed before it runs the so many-th line of the modules that write the library."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(lambda frame, *rest: trace(frame, *rest) if frame.f_code.co_filename in _WATCHED else None)


class Killable:
    """Builds in processes of their own, which leave a line in a log whenever they begin to embed a task."""

    def __init__(self, folders, root: Path, monkeypatch) -> None:
        self.tasks = [as_task(folder) for folder in folders]
        self.folder, self.log = root / "library", root / "log"
        self.log.touch()
        template = dataclasses.replace(fisher_embed(Blobs(), small_probe(), progress=False), group_means=None)

        def logged(task, *_, **__):
            with self.log.open("a") as file:
                file.write(task.name + "\n")
            fisher = template.fisher * (1 + len(task.source.paths[0]) + int(task.name[-1]))
            return dataclasses.replace(template, name=task.name, task_digest=task.digest(), fisher=fisher)

        monkeypatch.setattr(library_build, "embed_task", logged)
        monkeypatch.setattr(library_build, "rehearse", lambda *_: None)  # the probe cannot read folders

    def build(self) -> Library:
        library = build_library(self.tasks, self.folder, small_probe())
        library.entries()  # writes the cache
        return library

    def build_killed_at(self, line: int) -> bool:
        """Return whether the build was killed before it ended."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                kill_at(line)
                self.build()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    def saved(self) -> set[str]:
        """Return the files of embeddings that are whole."""
        return {file.name for file in self.folder.glob("embeddings/task*.safetensors")}

    def begun(self) -> list[str]:
        return self.log.read_text().split()


@pytest.mark.parametrize("seed", range(12))
def test_builds_killed_anywhere_lose_nothing_and_do_nothing_twice(folders, tmp_path, monkeypatch, seed):
    (tmp_path / "whole").mkdir()
    whole = Killable(folders, tmp_path / "whole", monkeypatch)
    expected = sums(whole.build())
    killable = Killable(folders, tmp_path, monkeypatch)
    lines, kills = random.Random(seed), 0
    for _ in range(6):
        saved, begun = killable.saved(), len(killable.begun())
        kills += killable.build_killed_at(lines.randrange(1, 880))  # a whole build takes about 890
        assert saved <= killable.saved()
        again = set(killable.begun()[begun:])
        assert not any(file.startswith(f"{name}-") for name in again for file in saved)
    assert kills > 0
    result = killable.build()
    assert len(killable.begun()) <= len(folders) + kills  # at most the task in flight, each time
    assert result.status() == {"done": 4, "failed": 0, "damaged": 0}
    assert result.verify() == []  # and nothing half-written is left
    assert sums(result) == expected


def test_a_real_build_is_killed_from_outside_and_goes_on(folders, tmp_path):
    command = [sys.executable, "-m", "task2vec_ext", "embed", *map(str, folders), "--probe", "tiny"]
    options = {"cwd": tmp_path, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    first = subprocess.Popen([*command, "-o", "killed"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **options)
    with first:
        line = first.stderr.readline()
        first.kill()
    assert line.startswith("1 of 4 tasks, 6 of 24 images")
    done = Library(tmp_path / "killed").status()["done"]
    assert done >= 1
    second = subprocess.run([*command, "-o", "killed"], capture_output=True, check=False, **options)
    assert second.returncode == 0, second.stderr
    assert "4 of 4 tasks" in second.stderr or done == 4
    whole = build_library(folders, tmp_path / "whole", "tiny")
    assert sums(Library(tmp_path / "killed")) == sums(whole)


def test_processes_build_one_folder_at_once_and_do_each_task_once(folders, tmp_path, monkeypatch):
    killable = Killable(folders, tmp_path, monkeypatch)
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            try:
                killable.build()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    built = Library(killable.folder)
    assert built.status() == {"done": 4, "failed": 0, "damaged": 0}
    assert built.verify() == []
    assert len(list((killable.folder / "embeddings").iterdir())) == 4


def test_a_task_that_another_process_did_meanwhile_is_not_done_again(built, monkeypatch):
    others = [name for name, _ in zip(("task5", "task6"), range(2), strict=True)]
    embed_one = library_build.embed_task

    def first_the_others(task, *arguments, **options):
        if task.name == "task5":
            monkeypatch.setattr(library_build, "embed_task", embed_one)
            build_library(tasks_of(7), built.folder, small_probe())
        return embed_one(task, *arguments, **options)

    embedded = watch(monkeypatch)
    monkeypatch.setattr(library_build, "embed_task", first_the_others)
    stamps = {}
    publish = Embedding.save
    monkeypatch.setattr(Embedding, "save", lambda self, path: (stamps.setdefault(path, 0), publish(self, path)))
    again = build_library(tasks_of(7), built.folder, small_probe())
    assert embedded == []
    assert again.status()["done"] == 7
    assert len(stamps) == len(others)


def test_parts_are_dealt_the_largest_first_and_make_the_whole(tmp_path):
    tasks = [as_task(Blobs(n=6 + 3 * t, seed=t), name=f"task{t}") for t in range(5)]
    sizes = []
    for part in range(3):
        before = set() if part == 0 else set(Library(tmp_path / "parts").names())
        found = build_library(tasks, tmp_path / "parts", small_probe(), part=(part, 3))
        sizes.append(sorted(set(found.names()) - before))
    assert sizes == [["task1", "task4"], ["task0", "task3"], ["task2"]]
    assert sums(found) == sums(build_library(tasks, tmp_path / "whole", small_probe()))
    for part, message in (((3, 3), "from 0 to 2, got 3"), ((0, 0), ">= 1, got 0")):
        with pytest.raises(ValueError, match=message):
            build_library(tasks, tmp_path / "parts", small_probe(), part=part)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_task_that_fails_is_recorded_and_the_others_go_on(folders, tmp_path):
    broken = shutil.copytree(folders[0], tmp_path / "broken")
    (broken / "class0" / "1.png").write_bytes(b"")
    paths = [broken, folders[1]]
    result = build_library(paths, tmp_path / "library", "tiny")
    assert states(result) == {"broken": "failed", "task1": "done"}
    assert "class0/1.png" in result.entries()[0].error
    with pytest.raises(ValueError, match=r"that failed: ValueError: .*class0/1\.png"):
        result.embedding("broken")
    shutil.copy(folders[0] / "class0" / "1.png", broken / "class0" / "1.png")
    assert states(build_library(paths, tmp_path / "library", "tiny"))["broken"] == "failed"
    again = build_library(paths, tmp_path / "library", "tiny", retry_failed=True)
    assert states(again) == {"broken": "done", "task1": "done"}
    assert again.entries()[0].error is None
    assert list((tmp_path / "library" / "failures").iterdir()) == []


def test_tasks_of_one_name_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="different names, got 1 names more than once: 'task1'"):
        build_library([*tasks_of(2), as_task(Blobs(), name="task1")], tmp_path / "library", small_probe())
    assert list(tmp_path.iterdir()) == []


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


def test_how_the_work_is_done_may_change(built):
    settings = EmbedSettings(head=HeadSettings(cross_fit=5))  # the default
    options = {"batch_size": 5, "on_error": "skip", "settings": settings, "device": "cpu"}
    assert build_library(tasks_of(6), built.folder, small_probe(), **options).status()["done"] == 6


def test_a_library_of_a_newer_format_is_refused(built, tmp_path):
    file = built.folder / "library.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 4}))
    with pytest.raises(ValueError, match=r"expected format 3 or older, .* has format 4"):
        Library(built.folder)
    with pytest.raises(ValueError, match="format 4"):
        build_library(tasks_of(6), built.folder, small_probe())
    for damaged in ("", "[]", '{"format": 3}', "\0"):
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


@pytest.mark.parametrize("loss", ["multilabel", "regression"])
def test_tasks_of_other_losses(tmp_path, loss):
    images = Blobs(n=12).images
    targets = torch.rand(12, 2, generator=torch.Generator().manual_seed(1))
    targets = targets.round() if loss == "multilabel" else targets
    pairs = list(zip(images, targets, strict=True))
    library = build_library([pairs], tmp_path / "library", small_probe(), settings=EmbedSettings(loss))
    assert states(library) == {"list": "done"}
    assert torch.equal(library.embedding("list").fisher, fisher_embed(pairs, small_probe(), loss=loss).fisher)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "expected batch_size >= 1"),
        ({"device": "cuda:99"}, RuntimeError, "expected a device this machine has"),
        ({"settings": EmbedSettings(layers=["layer9"])}, ValueError, "layers to name modules"),
        ({"settings": EmbedSettings(estimator="variational", include_batchnorm=True)}, ValueError, "include_batchnorm"),
    ],
)
def test_wrong_options_cost_no_work(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        build_library(tasks_of(1), tmp_path / "library", small_probe(), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("probe", "settings", "message"),
    [
        (
            lambda: load_probe("vit_b_32", weights="random", image_size=64),
            {},
            "it takes 224 × 224: pass image_size=224",
        ),
        (lambda: load_probe("tiny"), {"loss": "multilabel"}, "expected a multi-hot tensor"),
        (lambda: load_probe("tiny"), {"num_samples": 1}, "class"),
    ],
    ids=["image-size", "loss", "num-samples"],
)
def test_options_that_fit_no_task_stop_the_build(folders, tmp_path, probe, settings, message):
    with pytest.raises(ValueError, match=message):
        build_library(folders[:2], tmp_path / "library", probe(), settings=EmbedSettings(**settings))
    assert list(tmp_path.iterdir()) == []


def test_a_library_without_an_embedding_takes_other_settings(tmp_path):
    Folder(tmp_path).create(LibrarySettings.of(small_probe(), EmbedSettings(seed=1)))
    assert build_library(tasks_of(1), tmp_path, small_probe()).settings == EmbedSettings()


def test_of_two_builds_that_begin_one_folder_with_two_settings_one_ends_with_an_error(tmp_path, monkeypatch):
    embed_one = library_build.embed_task

    def first_the_other(task, *arguments, **options):
        monkeypatch.setattr(library_build, "embed_task", embed_one)
        build_library(tasks_of(1), tmp_path / "library", small_probe(), settings=EmbedSettings(seed=1))
        return embed_one(task, *arguments, **options)

    monkeypatch.setattr(library_build, "embed_task", first_the_other)
    with pytest.raises(ValueError, match=r"others \(there against here\): seed: 1 against 0"):
        build_library(tasks_of(2), tmp_path / "library", small_probe())
    assert states(Library(tmp_path / "library")) == {"task0": "done"}
    assert Library(tmp_path / "library").verify() == []


def test_images_that_changed_are_not_taken_for_the_old_ones(folders, tmp_path):
    task = shutil.copytree(folders[0], tmp_path / "task0")
    build_library([task], tmp_path / "library", "tiny")
    (task / "class0" / "2.png").unlink()
    with pytest.raises(ValueError, match="got others for 'task0'"):
        build_library([folders[1], task], tmp_path / "library", "tiny")
    assert states(Library(tmp_path / "library")) == {"task0": "done"}


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


def test_one_path_is_no_list_of_tasks(tmp_path):
    with pytest.raises(TypeError, match="expected a list of tasks, got 'good'"):
        build_library("good", tmp_path / "library", "tiny")
    assert list(tmp_path.iterdir()) == []


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
