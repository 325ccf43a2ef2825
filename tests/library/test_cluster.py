"""A real Ray of this machine, with two workers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Container
from pathlib import Path

import pytest
import torch
from small import Blobs, small_probe

from task2vec_ext import EmbedSettings, Library, Task2VecWarning, as_task, build_library, fisher_embed
from task2vec_ext._util import pool as _pool
from task2vec_ext.embed import Work, spread
from task2vec_ext.experts import transfer_errors

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs, a worker on each; what a build finds when it says ``ray=True``."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield ray
    ray.shutdown()


class Fatal(Blobs):
    """Kills the process that reads one of its images for the first, second, … time, by default for the first."""

    def __init__(self, log: Path, readings: Container[int] = (1,), **how) -> None:
        super().__init__(**how)
        self.log, self.readings = log, readings

    def __getitem__(self, index: int):
        if index == 7:
            with self.log.open("a") as file:
                file.write(".")
            if len(self.log.read_text()) in self.readings:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def tasks_of(count: int) -> list:
    return [as_task(Blobs(n=12 + t, noise=0.5 + t, seed=t), name=f"task{t}") for t in range(count)]


def assert_same(library: Library, other: Library) -> None:
    assert library.status() == other.status()
    for name in library.names():
        assert torch.equal(library.embedding(name).fisher, other.embedding(name).fisher)
        assert library.embedding(name).metadata == other.embedding(name).metadata


def test_workers_embed_what_one_process_does(cluster, tmp_path):
    def broken(images):
        raise OSError("broken")

    class Unreadable(Blobs):
        def __getitem__(self, index):
            return broken(index) if index == 3 else super().__getitem__(index)

    tasks = [*tasks_of(4), as_task(Unreadable(n=12), name="unreadable"), as_task([], name="empty")]
    with pytest.warns(Task2VecWarning, match="left out 1 of 12 images of 'unreadable'"):
        shared = build_library(tasks, tmp_path / "shared", small_probe(), ray=True, on_error="skip")
    with pytest.warns(Task2VecWarning):
        one = build_library(tasks, tmp_path / "one", small_probe(), on_error="skip")
    assert_same(shared, one)
    assert shared.status() == {"done": 5, "failed": 1, "damaged": 0}
    assert [entry.error for entry in shared.entries()] == [entry.error for entry in one.entries()]
    assert shared.verify() == []


def test_a_worker_that_is_killed_costs_nothing_and_a_task_that_kills_every_one_fails(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(_pool, "_ATTEMPTS", 2)
    once = as_task(Fatal(tmp_path / "once", n=12), name="once")
    always = as_task(Fatal(tmp_path / "always", range(99), n=30), name="always")
    library = build_library([*tasks_of(2), once, always], tmp_path / "library", small_probe(), ray=True)
    expected = fisher_embed(Blobs(n=12), small_probe(), progress=False)
    assert torch.equal(library.embedding("once").fisher, expected.fisher)
    assert library.status() == {"done": 3, "failed": 1, "damaged": 0}
    assert "lost 2 workers in a row" in library.entries()[0].error


def test_a_large_task_is_shared_and_a_worker_is_killed_in_both_passes(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "RANGE", 64)
    monkeypatch.setattr(spread, "LARGE", 100)
    task = as_task(Fatal(tmp_path / "readings", (1, 3), n=200), name="large")  # features, again, Fisher, again
    library = build_library([task, *tasks_of(1)], tmp_path / "library", small_probe(), ray=True)
    assert len((tmp_path / "readings").read_text()) == 4
    found, expected = library.embedding("large"), fisher_embed(Blobs(n=200), small_probe(), progress=False)
    assert float((found.fisher - expected.fisher).norm() / expected.fisher.norm()) < 1e-6
    torch.testing.assert_close(found.group_means, expected.group_means, rtol=1e-5, atol=1e-9)
    assert (found.head, found.num_samples) == (expected.head, expected.num_samples)
    alone = in_one_process(as_task(Blobs(n=200), name="large"))
    assert torch.equal(found.fisher, alone.fisher)  # whatever the workers, and whoever of them was lost


def in_one_process(task):
    settings = EmbedSettings()
    worker = spread.Embedder(small_probe(), settings, Work(progress=False), False)

    class Alone:
        put = staticmethod(lambda value: value)

        @staticmethod
        def all(calls, ended=None):
            return [getattr(worker, method)(*arguments) for method, *arguments in calls]

    return spread.embed_spread(task, small_probe(), settings, Alone)


SUPPORT = str(Path(__file__).parents[1] / "support")
DRIVER = """
import sys
sys.path[:0] = [{support!r}]
from small import Blobs, small_probe
from task2vec_ext import as_task, build_library
tasks = [as_task(Blobs(n=12 + t, noise=0.5 + t, seed=t), name=f"task{{t}}") for t in range(12)]
build_library(tasks, {folder!r}, small_probe(), ray={address!r})
"""


def test_a_driver_that_is_killed_is_started_again_and_goes_on(cluster, tmp_path):
    address = cluster.get_runtime_context().gcs_address
    program = DRIVER.format(support=SUPPORT, folder=str(tmp_path), address=address)
    embeddings = tmp_path / "embeddings"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as driver:
        while not list(embeddings.glob("task*")) and driver.poll() is None:
            time.sleep(0.01)
        assert driver.poll() is None, driver.stderr.read()
        driver.kill()
    before = {file.name: file.stat().st_mtime_ns for file in embeddings.glob("task*")}
    assert 1 <= len(before) < 12
    library = build_library(tasks_of(12), tmp_path, small_probe(), ray=True)
    assert library.status() == {"done": 12, "failed": 0, "damaged": 0}
    assert before.items() <= {file.name: file.stat().st_mtime_ns for file in embeddings.iterdir()}.items()
    assert library.verify() == []


def test_experts_are_measured_as_by_one_process(cluster, tmp_path):
    experts = {"one": small_probe(), "two": small_probe()}
    shared = transfer_errors(experts, tasks_of(3), tmp_path / "shared.csv", ray=True)
    one = transfer_errors(experts, tasks_of(3), tmp_path / "one.csv", progress=False)
    assert torch.equal(shared.errors, one.errors)
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
def test_an_address_that_does_not_answer_is_told(tmp_path, monkeypatch, address):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=f"expected a Ray cluster at '{address}', got: "):
        build_library(tasks_of(1), tmp_path / "library", small_probe(), ray=address)


def test_workers_of_another_version_are_told_and_fail_no_task(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "LARGE", 10)  # of these, the whole cluster embeds one
    monkeypatch.setattr(_pool.importlib.metadata, "version", lambda name: "0.1")
    with pytest.raises(RuntimeError, match=r"task2vec_ext 0\.1 here, .* on node .*; install the same on all"):
        build_library(tasks_of(1), tmp_path, small_probe(), ray=True)
    assert Library(tmp_path).status() == {"done": 0, "failed": 0, "damaged": 0}


WITHOUT = """
import importlib.metadata, sys
version = importlib.metadata.version
def without(name):
    if name == "task2vec_ext":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version, sys.modules["task2vec_ext"] = without, None
"""


def test_workers_without_the_package_are_told(cluster, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    remote = cluster.remote(runtime_env={"env_vars": {"PYTHONPATH": path}})
    monkeypatch.setattr(cluster, "remote", remote)
    with pytest.raises(RuntimeError, match=r"task2vec_ext .* here, none on node .*; install the same on all"):
        build_library(tasks_of(1), tmp_path / "library", small_probe(), ray=True)


def test_a_cluster_that_is_lost_costs_no_embedding(tmp_path):
    """A driver does not outlive the raylet of its own node (Ray 2.60); the same command continues."""
    program = "import ray; ray.init('local', num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
    program += "print(ray._private.worker._global_node.all_processes['raylet'][0].process.pid, flush=True)\n"
    program += DRIVER.format(support=SUPPORT, folder=str(tmp_path), address="auto")
    embeddings = tmp_path / "embeddings"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as driver:
        raylet = int(driver.stdout.readline())
        while not list(embeddings.glob("task*")) and driver.poll() is None:
            time.sleep(0.01)
        assert driver.poll() is None
        os.kill(raylet, signal.SIGKILL)
        try:
            driver.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            driver.kill()
    assert Library(tmp_path).status()["failed"] == 0
    before = {file.name: file.stat().st_mtime_ns for file in embeddings.glob("task*")}
    library = build_library(tasks_of(12), tmp_path, small_probe())
    assert library.status() == {"done": 12, "failed": 0, "damaged": 0}
    assert before.items() <= {file.name: file.stat().st_mtime_ns for file in embeddings.iterdir()}.items()
    assert library.verify() == []
