"""Two processes, started by torchrun as a user would (tests/ranks.py is what they run)."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from small import Blobs, small_probe

from task2vec_ext import Embedding, Library, Task2VecWarning, as_task, build_library, fisher_embed

RANKS = Path(__file__).parents[1] / "support" / "ranks.py"


def torchrun(folder: Path, *arguments: object, restarts: int = 0) -> subprocess.CompletedProcess:
    """Start two ranks away from the sources, which would hide the package that is installed."""
    options = ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}", *map(str, arguments)]
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    # Without its variable torchrun (2.14) gives restarted ranks the addresses of those that are gone.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def close(fisher: torch.Tensor, other: torch.Tensor) -> bool:
    return float((fisher - other).norm() / other.norm()) < 1e-6


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(folder, RANKS, "embed", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("name", "task", "options"),
    [
        ("many", Blobs(n=150, seed=1), {}),
        ("few", Blobs(n=20, seed=2), {}),
        ("exact", Blobs(n=70, seed=4), {"estimator": "exact", "num_samples": 66, "batch_size": 7}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ranks_that_share_the_images_give_what_one_process_gives(shared, name, task, options):
    expected = fisher_embed(task, small_probe(), name=name, progress=False, **options)
    first, second = (Embedding.load(shared / f"{name}-{rank}.safetensors") for rank in range(2))
    assert torch.equal(first.fisher, second.fisher)
    assert close(first.fisher, expected.fisher)
    assert close(first.group_means, expected.group_means)
    assert first.num_samples == expected.num_samples
    assert first.head.score == expected.head.score


def test_images_that_are_left_out_are_left_out_of_all_ranks(shared):
    class Broken(Blobs):
        def __getitem__(self, index):
            if index in (3, 50, 51):
                raise OSError("broken")
            return super().__getitem__(index)

    with pytest.warns(Task2VecWarning, match="left out 3 of 150 .*: image 3; image 50; image 51"):
        expected = fisher_embed(Broken(n=150, seed=3), small_probe(), on_error="skip", progress=False)
    for rank in range(2):
        embedding = Embedding.load(shared / f"broken-{rank}.safetensors")
        assert (embedding.num_samples, embedding.num_skipped) == (147, 3)
        assert embedding.metadata == expected.metadata
        assert close(embedding.fisher, expected.fisher)
        assert close(embedding.group_means, expected.group_means)  # the groups close up, too


def test_what_fails_on_one_rank_is_raised_on_both(shared):
    errors = [torch.load(shared / f"found-{rank}")["error"] for rank in range(2)]
    assert errors[0] == errors[1]
    assert "expected usable images" in errors[0]


def test_a_lost_rank_costs_the_tasks_in_flight_alone(tmp_path):
    done = torchrun(tmp_path, RANKS, "library", tmp_path, restarts=1)
    assert done.returncode == 0, done.stderr
    tasks = [as_task(Blobs(n=10 + t, noise=0.5 + t, seed=t), name=f"task{t}") for t in range(6)]
    library, sharded = Library(tmp_path / "library"), Library(tmp_path / "sharded")
    assert library.verify() == []
    one = build_library(tasks, tmp_path / "one", small_probe())
    for task in tasks:
        assert torch.equal(library.embedding(task.name).fisher, one.embedding(task.name).fisher)
        assert close(sharded.embedding(task.name).fisher, one.embedding(task.name).fisher)
    embedded = Counter(line.split()[0] for line in (tmp_path / "log").read_text().splitlines())
    assert sorted(embedded) == [task.name for task in tasks]
    assert embedded.total() <= 6 + 1  # the task that the first had in flight; what it had written was taken up
    assert sharded.status() == {"done": 6, "failed": 1, "waiting": 0}
    assert [entry.name for entry in sharded.entries() if entry.state == "failed"] == ["broken"]


def test_a_lost_rank_fails_no_task_of_which_it_had_images(tmp_path):
    done = torchrun(tmp_path, RANKS, "sharded", tmp_path, restarts=1)
    assert done.returncode == 0, done.stderr
    library = Library(tmp_path / "library")
    assert library.status() == {"done": 5, "failed": 0, "waiting": 0}
    assert library.verify() == []


def test_ranks_that_are_out_of_step_say_so(tmp_path):
    done = torchrun(tmp_path, RANKS, "apart", tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert "expected all ranks to be at" in (tmp_path / f"error-{rank}").read_text()
    states = {entry.name: entry.state for entry in Library(tmp_path / "library").entries()}
    assert states == {"task0": "done", "task1": "waiting", "task2": "waiting", "task3": "waiting"}


def test_a_rank_that_cannot_save_ends_all(tmp_path):
    (tmp_path / "library" / "embeddings").mkdir(parents=True)
    done = torchrun(tmp_path, RANKS, "full", tmp_path)
    assert done.returncode == 0, done.stderr
    errors = [(tmp_path / f"error-{rank}").read_text() for rank in range(2)]
    assert errors[1] == "OSError no space"
    assert errors[0].startswith("RanksLostError build_library: expected all ranks to go on")


def test_the_command_line_shares_tasks(tmp_path):
    folders = []
    for t in range(3):
        for c in range(2):
            (tmp_path / f"task{t}" / f"class{c}").mkdir(parents=True)
            for i in range(3):
                file = tmp_path / f"task{t}" / f"class{c}" / f"{i}.png"
                Image.effect_noise((50, 50 + t), 60 + 20 * c).convert("RGB").save(file)
        folders.append(f"task{t}")
    command = ("-m", "task2vec_ext", "embed", *folders, "--probe", "tiny", "-o")
    done = torchrun(tmp_path, *command, "shared")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 of 3 tasks are embedded in shared") == 1  # said once
    assert "3 of 3 tasks, 18 of 18 images" in done.stderr
    one = build_library([tmp_path / name for name in folders], tmp_path / "one", "tiny")
    for name in folders:
        assert torch.equal(Library(tmp_path / "shared").embedding(name).fisher, one.embedding(name).fisher)


def test_sharing_images_takes_several_processes(tmp_path):
    with pytest.raises(ValueError, match=r"expected a process_group with shard_images.*torchrun"):
        build_library([Blobs()], tmp_path / "library", small_probe(), shard_images=True)
    assert list(tmp_path.iterdir()) == []
