"""Fifty kills at random moments: `python tests/library/kills.py [KILLS]`, not collected by pytest.

Three processes build 30 small tasks into one folder, each all of them, beside each other. One of them, drawn at random,
is killed at a random moment after it began, and started again, until so many were killed. Where it has ended before, a
third of the embeddings, drawn at random, is removed, so that there is work left. At the end: every task once, bit for
bit as in an undisturbed build.
"""

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from small import Blobs, small_probe

from task2vec_ext import Library, as_task, build_library

TASKS, PROCESSES = 30, 3


def build(folder: str) -> None:
    """What each of the processes does."""
    tasks = [as_task(Blobs(n=24 + t, noise=0.5 + t, seed=t), name=f"task{t:02}") for t in range(TASKS)]
    random.shuffle(tasks)
    build_library(tasks, folder, small_probe(), progress=False)


def sums(folder: Path) -> dict[str, str]:
    """Return a checksum of every embedding."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (folder / "embeddings").glob("[!.]*")}


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start a build."""
    return subprocess.Popen([sys.executable, __file__, "build", str(folder)], stdout=subprocess.PIPE)


def main(kills: int) -> None:
    """Kill, and compare."""
    draw, started = random.Random(0), time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        whole, folder = Path(root) / "whole", Path(root) / "killed"
        build(str(whole))
        expected = sums(whole)
        running = [start(folder) for _ in range(PROCESSES)]
        killed, ended, removed = 0, 0, 0
        while killed < kills:
            victim = draw.randrange(PROCESSES)
            running[victim].stdout.readline()  # it begins
            time.sleep(draw.uniform(0, 3))
            if running[victim].poll() is None:
                running[victim].kill()
                killed += 1
            else:
                assert running[victim].returncode == 0
                ended += 1
                gone = [file for file in (folder / "embeddings").glob("task*") if draw.random() < 1 / 3]
                removed += len(gone)
                for file in gone:
                    file.unlink()
            running[victim].wait()
            running[victim] = start(folder)
        codes = [one.wait() for one in running]
        found, library = sums(folder), Library(folder)
        status, wrong = library.status(), library.verify()
        seconds = time.monotonic() - started
        print(f"{killed} kills, {ended} builds that ended, {removed} embeddings removed, {seconds:.0f} s")
        print(f"exit codes {codes}; {status}; problems: {wrong}")
        other = sum(found[name] != expected[name] for name in found.keys() & expected.keys())
        lost, more = expected.keys() - found.keys(), found.keys() - expected.keys()
        print(f"lost {len(lost)}, too many {len(more)}, other bits {other}")
        assert codes == [0] * PROCESSES
        assert status == {"done": TASKS, "failed": 0, "damaged": 0}
        assert wrong == []
        assert found == expected


if __name__ == "__main__":
    if sys.argv[1:2] == ["build"]:
        print("begins", flush=True)
        build(sys.argv[2])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 50)
