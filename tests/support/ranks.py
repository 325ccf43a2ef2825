"""What tests/test_team.py has torchrun start: `python -m torch.distributed.run … tests/ranks.py WHAT FOLDER`."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from small import Blobs, small_probe

from task2vec_ext import Embedding, EmbedSettings, as_task, build_library
from task2vec_ext.embed import Work, embed_task
from task2vec_ext.library import build as library_build


class Broken(Blobs):
    """Three of its images cannot be read."""

    def __getitem__(self, index):
        if index in (3, 50, 51):
            raise OSError("broken")
        return super().__getitem__(index)


def share(task, group, *, estimator="signed", num_samples=None, **how) -> Embedding:
    settings = EmbedSettings(estimator=estimator, num_samples=num_samples)
    return embed_task(task, small_probe(), settings, Work(process_group=group, **how))


def embed(folder: Path) -> None:
    """Share the images of tasks; save what each rank has."""
    group, found = dist.group.WORLD, {}
    for name, task, options in (
        ("many", Blobs(n=150, seed=1), {}),
        ("few", Blobs(n=20, seed=2), {}),  # one round of the groups: nothing for the second rank
        ("broken", Broken(n=150, seed=3), {"on_error": "skip"}),
        ("exact", Blobs(n=70, seed=4), {"estimator": "exact", "num_samples": 66, "batch_size": 7}),
    ):
        embedding = share(as_task(task, name=name), group, **options)
        embedding.save(folder / f"{name}-{dist.get_rank()}.safetensors")
        found[name] = embedding.num_skipped
    try:
        share(as_task(Broken(n=150, seed=3)), group)
    except ValueError as error:
        found["error"] = str(error)
    torch.save(found, folder / f"found-{dist.get_rank()}")


def library(folder: Path) -> None:
    """Share tasks; the second rank is killed in its first task, the first time."""
    embed_one = library_build.embed_task

    def logged(task, *arguments, **options):
        len(task)
        if dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        result = embed_one(task, *arguments, **options)
        with (folder / "log").open("a") as file:
            file.write(f"{task.name} {dist.get_rank()}\n")
        return result

    library_build.embed_task = logged
    tasks = [as_task(Blobs(n=10 + t, noise=0.5 + t, seed=t), name=f"task{t}") for t in range(6)]
    built = build_library(tasks, folder / "library", small_probe(), process_group=dist.group.WORLD)
    assert built.status()["done"] == 6  # on every rank, when it returns
    library_build.embed_task = embed_one
    tasks.insert(3, as_task(Broken(n=150), name="broken"))
    build_library(tasks, folder / "sharded", small_probe(), process_group=dist.group.WORLD, shard_images=True)


def sharded(folder: Path) -> None:
    """Share the images of tasks; the second rank is killed in the third task, the first time."""
    embed_one = library_build.embed_task

    def killed(task, *arguments, **options):
        if dist.get_rank() == 1 and task.name == "task2" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return embed_one(task, *arguments, **options)

    library_build.embed_task = killed
    tasks = [as_task(Blobs(n=70 + t, noise=0.5 + t, seed=t), name=f"task{t}") for t in range(5)]
    build_library(tasks, folder / "library", small_probe(), process_group=dist.group.WORLD, shard_images=True)


def apart(folder: Path) -> None:
    """The second rank fails in a task without telling: nobody takes its next task's values for this one's."""
    embed_one = library_build.embed_task

    def failing(task, *arguments, **options):
        if dist.get_rank() == 1 and task.name == "task1":
            raise MemoryError("on this rank alone")
        return embed_one(task, *arguments, **options)

    library_build.embed_task = failing
    tasks = [as_task(Blobs(n=70 + t, noise=0.5 + t, seed=t), name=f"task{t}") for t in range(4)]
    try:
        build_library(tasks, folder / "library", small_probe(), process_group=dist.group.WORLD, shard_images=True)
    except RuntimeError as error:
        (folder / f"error-{dist.get_rank()}").write_text(str(error))


def full(folder: Path) -> None:
    """Share tasks; the second rank's disk is full, and the first embeds nothing before that was noticed."""
    store, embed_one = dist.group.WORLD.get_group_store(), library_build.embed_task

    def fails(*_):
        store.set("full", "")
        raise OSError("no space")

    def waits(task, *arguments, **options):
        store.wait(["full"])
        return embed_one(task, *arguments, **options)

    if dist.get_rank() == 1:
        Embedding.save = fails
    else:
        library_build.embed_task = waits
    tasks = [as_task(Blobs(n=70 + t, noise=0.5 + t, seed=t), name=f"task{t}") for t in range(8)]
    try:
        build_library(tasks, folder / "library", small_probe(), process_group=dist.group.WORLD)
    except (RuntimeError, OSError) as error:
        (folder / f"error-{dist.get_rank()}").write_text(f"{type(error).__name__} {error}")


dist.init_process_group("gloo")
{"embed": embed, "library": library, "sharded": sharded, "apart": apart, "full": full}[sys.argv[1]](Path(sys.argv[2]))
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # as cli.main
