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
from task2vec_ext.embed import embed_task, fisher_embed
from task2vec_ext.library import build as library_build
from task2vec_ext.library import index as _index
from task2vec_ext.library import library
from task2vec_ext.library import matrix as _matrix
from task2vec_ext.library.index import Index
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
    files = {entry.name: built.folder / "embeddings" / entry.file for entry in built.entries()}
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

_WATCHED = {module.__file__ for module in (library, library_build, _index, _matrix, _atomic)}


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
        return build_library(self.tasks, self.folder, small_probe())

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
        kills += killable.build_killed_at(lines.randrange(1, 660))  # a whole build takes about 670
        assert saved <= killable.saved()
        again = set(killable.begun()[begun:])
        assert not any(file.startswith(f"{name}-") for name in again for file in saved)
    assert kills > 0
    result = killable.build()
    assert len(killable.begun()) <= len(folders) + kills  # at most the task in flight, each time
    assert result.status() == {"done": 4, "failed": 0, "waiting": 0}
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


def test_a_second_build_says_that_there_is_a_first_until_that_dies(built):
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with _index.lock(built.folder):
            os.write(tell, b"locked")
            signal.pause()
    assert os.read(ready, 6) == b"locked"
    assert built.is_building
    with pytest.raises(RuntimeError, match="another process is adding tasks"):
        build_library(tasks_of(6), built.folder, small_probe())
    with pytest.raises(RuntimeError, match="another process"):
        built.remove(["task0"])
    assert len(built.nearest("task0")) == 4  # reading is allowed
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not built.is_building
    assert build_library(tasks_of(6), built.folder, small_probe()).status()["done"] == 6


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
    with sqlite3.connect(built.folder / "index.sqlite") as db:
        db.execute("UPDATE settings SET format = 3")
    db.close()
    with pytest.raises(ValueError, match=r"expected format 2 or older, .* has format 3"):
        Library(built.folder)
    with pytest.raises(ValueError, match="format 3"):
        build_library(tasks_of(6), built.folder, small_probe())
    with pytest.raises(ValueError, match="expected a library at"):
        Library(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_library_of_version_0_1_is_read_and_added_to(built):
    """Its settings were one flat record, of fisher_embed's options at that time."""
    record = built.made_with.to_json()
    settings, probe = record["settings"], record["probe"]
    head = settings.pop("head")
    old = {
        **settings,
        "probe": probe,
        "preprocess": probe.pop("preprocess"),
        "filters": record["filters"],
        "head_method": head["method"],
        "head_l2": head["l2"],
        "class_balanced": head["class_balanced"],
        "error_bars": True,
    }
    with sqlite3.connect(built.folder / "index.sqlite") as db:
        db.execute("UPDATE settings SET format = 1, settings = ?", (json.dumps(old),))
    db.close()
    one_head = EmbedSettings(head=HeadSettings(cross_fit=None))
    assert Library(built.folder).made_with == dataclasses.replace(built.made_with, settings=one_head)
    assert build_library(tasks_of(6), built.folder, small_probe(), settings=one_head).status()["done"] == 6
    with pytest.raises(ValueError, match="head cross_fit: None against 5"):
        build_library(tasks_of(6), built.folder, small_probe())


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
    Index(tmp_path / "index.sqlite").create(LibrarySettings.of(small_probe(), EmbedSettings(seed=1)).to_json())
    assert build_library(tasks_of(1), tmp_path, small_probe()).settings == EmbedSettings()


def test_images_that_changed_are_not_taken_for_the_old_ones(folders, tmp_path):
    task = shutil.copytree(folders[0], tmp_path / "task0")
    build_library([task], tmp_path / "library", "tiny")
    (task / "class0" / "2.png").unlink()
    with pytest.raises(ValueError, match="got others for 'task0'"):
        build_library([folders[1], task], tmp_path / "library", "tiny")
    assert states(Library(tmp_path / "library")) == {"task0": "done"}


def test_libraries_of_version_0_2_are_continued(folders, tmp_path):
    images = [(Image.effect_noise((40, 40), 90), i % 2) for i in range(6)]  # of these, the same every time

    def build():
        return build_library([folders[0], as_task(images, name="memory")], tmp_path, "tiny", progress=False)

    index = build().index
    ours = index.entries()[0].digest
    for entry in index.entries():  # files were known by names, sizes and labels, images in memory by their name
        file = Embedding.load(tmp_path / "embeddings" / entry.file)
        old = None if entry.name == "memory" else entry.digest.split("-")[0]
        dataclasses.replace(file, task_digest=old).save(tmp_path / "embeddings" / entry.file)
        index.update(dataclasses.replace(entry, digest=old))
    before = [(entry.sha256, entry.seconds) for entry in index.entries()]
    index = build().index
    assert [(entry.sha256, entry.seconds) for entry in index.entries()] == before  # kept
    assert index.entries()[0].digest == ours  # from now on


def test_names_that_are_no_utf_8_and_names_that_look_alike_keep_apart(tmp_path):
    names = ["\udcff\udcfe", "é", "a b", "a_b", "A_B", "名" * 100, "x" * 300, "../up"]
    named = [as_task(Blobs(n=6, seed=i), name=name) for i, name in enumerate(names)]
    result = build_library(named, tmp_path / "library", small_probe())
    assert [entry.name for entry in result.entries()] == names
    assert len({entry.file.lower() for entry in result.entries()}) == len(names)
    assert result.verify() == []
    assert {file.name for file in tmp_path.iterdir()} == {"library"}
    assert result.nearest(names[0], k=1)[0].name in names
    result.remove(names[:1])
    assert names[0] not in states(result)


def test_verify_finds_all_that_is_wrong(built):
    entries = built.entries()
    files = [built.folder / "embeddings" / entry.file for entry in entries]
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    files[0].write_bytes(data)
    files[1].unlink()
    shutil.copy(files[3], files[2].with_name("stray.safetensors"))
    built.matrix.write(entries[4].id, torch.ones(built.matrix.filters))
    wrong = built.verify()
    assert len(wrong) == 4
    for line, (name, what) in zip(
        wrong,
        [("task0", "damaged"), ("task1", "missing"), ("task4", "row 5"), ("stray", "no task")],
        strict=True,
    ):
        assert name in line
        assert what in line
    # As the messages say:
    built.remove(["task0", "task4"])
    (built.folder / "embeddings" / "stray.safetensors").unlink()
    assert build_library(tasks_of(5), built.folder, small_probe()).verify() == []


def test_a_lost_matrix_is_made_again(built, monkeypatch):
    expected, matrix = built.nearest("task1"), built.folder / "matrix.f32"
    for damage in (matrix.unlink, lambda: matrix.write_bytes(matrix.read_bytes()[:-1])):
        damage()
        assert any("delete that file" in line for line in built.verify())
        assert Library(built.folder).nearest("task1") == expected
        assert built.verify() == []
    matrix.unlink()
    embedded = watch(monkeypatch)
    build_library(tasks_of(6), built.folder, small_probe())
    assert embedded == ["task5"]
    assert built.verify() == []


def test_one_path_is_no_list_of_tasks(tmp_path):
    with pytest.raises(TypeError, match="expected a list of tasks, got 'good'"):
        build_library("good", tmp_path / "library", "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_lost_index_costs_no_embedding_of_the_same_settings(built, monkeypatch):
    before = sums(built)
    embedded = watch(monkeypatch)
    (built.folder / "index.sqlite").unlink()
    again = build_library(tasks_of(5), built.folder, small_probe())
    assert (embedded, sums(again), again.verify()) == ([], before, [])
    (built.folder / "index.sqlite").unlink()
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
