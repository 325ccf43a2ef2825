import dataclasses
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from libraries import states, sums, tasks_of, watch
from small import Blobs, small_probe

from task2vec_ext import Embedding, EmbedSettings, HeadSettings, Library, as_task, build_library, load_probe
from task2vec_ext._util import atomic as _atomic
from task2vec_ext.embed import fisher_embed, spread
from task2vec_ext.library import build as library_build
from task2vec_ext.library import cache as _cache
from task2vec_ext.library import folder as _folder
from task2vec_ext.library import library
from task2vec_ext.library import publish as _publish

_WATCHED = {module.__file__ for module in (library, library_build, _publish, _folder, _cache, _atomic)}


def test_a_build_embeds_only_what_is_not_there(built, monkeypatch):
    before = sums(built)
    embedded = watch(monkeypatch)
    again = build_library(tasks_of(7), built.folder, small_probe())
    assert embedded == ["task5", "task6"]
    assert {name: sums(again)[name] for name in before} == before


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

    def __init__(self, folders, root: Path, template: Embedding, monkeypatch) -> None:
        self.tasks = [as_task(folder) for folder in folders]
        self.folder, self.log = root / "library", root / "log"
        self.log.touch()

        def logged(task, *_, **__):
            with self.log.open("a") as file:
                file.write(task.name + "\n")
            fisher = template.fisher * (1 + len(task.source.paths[0]) + int(task.name[-1]))
            return dataclasses.replace(template, name=task.name, task_digest=task.digest(), fisher=fisher)

        monkeypatch.setattr(spread, "embed_task", logged)
        monkeypatch.setattr(library_build, "_rehearse", lambda *_: None)  # the probe cannot read folders

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


@pytest.fixture(scope="module")
def template() -> Embedding:
    return dataclasses.replace(fisher_embed(Blobs(), small_probe(), progress=False), group_means=None)


@pytest.fixture(scope="module")
def undisturbed(folders, template, tmp_path_factory) -> dict[str, str]:
    """Checksums of what a build gives that nobody kills."""
    with pytest.MonkeyPatch.context() as patch:
        return sums(Killable(folders, tmp_path_factory.mktemp("undisturbed"), template, patch).build())


@pytest.mark.parametrize("seed", range(12))
def test_builds_killed_anywhere_lose_nothing_and_do_nothing_twice(
    folders, template, undisturbed, tmp_path, monkeypatch, seed
):
    killable = Killable(folders, tmp_path, template, monkeypatch)
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
    assert sums(result) == undisturbed


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


def test_processes_build_one_folder_at_once_and_do_each_task_once(folders, template, tmp_path, monkeypatch):
    killable = Killable(folders, tmp_path, template, monkeypatch)
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
    embed_one = spread.embed_task

    def first_the_others(task, *arguments, **options):
        if task.name == "task5":
            monkeypatch.setattr(spread, "embed_task", embed_one)
            build_library(tasks_of(7), built.folder, small_probe())
        return embed_one(task, *arguments, **options)

    embedded = watch(monkeypatch)
    monkeypatch.setattr(spread, "embed_task", first_the_others)
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


def test_a_full_disk_ends_the_build_and_the_same_call_continues(tmp_path, monkeypatch):
    flush, room, errors = os.fsync, 1, []

    def no_room(file):
        nonlocal room
        if (room := room - 1) < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    monkeypatch.setattr(_atomic.os, "fsync", no_room)
    tasks = [*tasks_of(2), as_task([], name="empty")]
    while len(errors) < 9:
        room = 1  # of one file: the settings, an embedding, a failure, a cache
        try:
            library = build_library(tasks, tmp_path / "library", small_probe())
            break
        except OSError as error:
            errors.append(str(error))
            assert not list(tmp_path.rglob(".task2vec-*"))
    written = [Path(error.split(": ")[0]) for error in errors]
    assert list(dict.fromkeys(file.parent.name for file in written)) == ["embeddings", "failures"]
    assert len(set(written)) == 3
    assert all("No space left on device; nothing was written" in error for error in errors)
    assert states(library) == {"task0": "done", "task1": "done", "empty": "failed"}
    assert library.verify() == []


def test_a_task_that_finds_a_disk_full_has_not_failed(tmp_path):
    class Full(Blobs):
        def __getitem__(self, index):
            raise OSError(errno.ENOSPC, "No space left on device")

    tasks = [*tasks_of(1), as_task(Full(n=12), name="task1")]
    with pytest.raises(OSError, match=r"build_library: 'task1' found a full disk .*; the same call continues"):
        build_library(tasks, tmp_path, small_probe(), on_error="skip")
    assert states(Library(tmp_path)) == {"task0": "done"}
    assert states(build_library(tasks_of(2), tmp_path, small_probe())) == {"task0": "done", "task1": "done"}


def test_tasks_of_one_name_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="different names, got some more than once: 'task1'"):
        build_library([*tasks_of(2), as_task(Blobs(), name="task1")], tmp_path / "library", small_probe())
    assert list(tmp_path.iterdir()) == []


def test_how_the_work_is_done_may_change(built):
    settings = EmbedSettings(head=HeadSettings(cross_fit=5))  # the default
    options = {"batch_size": 5, "on_error": "skip", "settings": settings, "device": "cpu"}
    assert build_library(tasks_of(6), built.folder, small_probe(), **options).status()["done"] == 6


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


def test_of_two_builds_that_begin_one_folder_with_two_settings_one_ends_with_an_error(tmp_path, monkeypatch):
    embed_one = spread.embed_task

    def first_the_other(task, *arguments, **options):
        monkeypatch.setattr(spread, "embed_task", embed_one)
        build_library(tasks_of(1), tmp_path / "library", small_probe(), settings=EmbedSettings(seed=1))
        return embed_one(task, *arguments, **options)

    monkeypatch.setattr(spread, "embed_task", first_the_other)
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


def test_one_path_is_no_list_of_tasks(tmp_path):
    with pytest.raises(TypeError, match="expected a list of tasks, got 'good'"):
        build_library("good", tmp_path / "library", "tiny")
    assert list(tmp_path.iterdir()) == []
