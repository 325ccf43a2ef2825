"""How long is the wait before anything happens: imports, help, the shell's completion, a first embedding?

    python benchmarks/startup.py [--repeats 7] [--images 20]

Every way is a process of its own, whole: from its start to its end. Imports are compared with that of torch and
torchvision alone; importing the package touches every public name, because it imports nothing before the first is used.
The first embedding is `task2vec embed FOLDER --probe tiny` of images of 256² pixels, in two classes. Checked first:
help and completion say what they should, and import no torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _measure import interleave, parser, print_table, ratio, stop_if, summary
from _record import write_record
from PIL import Image

COMPLETE = {"_TASK2VEC_COMPLETE": "complete_bash", "COMP_WORDS": "task2vec embed --est", "COMP_CWORD": "2"}
COMMAND = ("-m", "task2vec_ext")


def main() -> None:
    """Check, then time."""
    arguments = parser(__doc__, repeats=7)
    arguments.add_argument("--images", type=int, default=20)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stop_if(wrong())
        ways = ways_in(Path(folder), options.images)
        for step in ways.values():
            step()  # compiled modules and files' pages are there
        seconds = interleave(ways, options.repeats, "cpu")
    result = {name: {"seconds": summary(values)} for name, values in seconds.items()}
    result["import task2vec_ext"]["times_torch"] = ratio(
        *(seconds[f"import {what}"] for what in ("task2vec_ext", "torch"))
    )
    rows = [(name, *(one["seconds"][key] for key in ("median", "n"))) for name, one in result.items()]
    times = result["import task2vec_ext"]["times_torch"]["median"]
    print_table(f"import task2vec_ext ÷ import torch, torchvision: {times:.2f}", ["way", "s", "n"], rows)
    print(write_record("startup", {"images": options.images, "ways": result}))


def wrong() -> list[str]:
    """Return what help and completion do not do as they should."""
    loads = "torch" in run("-X", "importtime", *COMMAND, "--help").stderr
    right = {
        "help": "Usage: task2vec" in run(*COMMAND, "--help").stdout,
        "completion": run(*COMMAND, **COMPLETE).stdout.split() == ["--estimator"],
        "help without torch": not loads,
    }
    return [f"startup: expected {what}, got something else; nothing timed." for what, so in right.items() if not so]


def ways_in(folder: Path, images: int) -> dict[str, Callable[[], object]]:
    """Return what is timed; the task's images are drawn into `folder`."""
    generator = torch.Generator().manual_seed(0)
    for i in range(images):
        pixels = torch.randint(0, 120 + 100 * (i % 2), (256, 256, 3), dtype=torch.uint8, generator=generator)
        path = folder / "task" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)

    def embed() -> None:
        library = tempfile.mkdtemp(dir=folder)
        run(*COMMAND, "embed", str(folder / "task"), "-o", library, "--probe", "tiny")

    return {
        "import torch": partial(run, "-c", "import torch, torchvision"),
        "import task2vec_ext": partial(run, "-c", "import torch, torchvision; from task2vec_ext import *"),
        "task2vec --help": partial(run, *COMMAND, "--help"),
        "completion": partial(run, *COMMAND, **COMPLETE),
        f"embed {images} images": embed,
    }


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python, and return what it has said."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})


if __name__ == "__main__":
    main()
