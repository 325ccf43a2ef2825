"""How long does it take to open a library of very many embeddings, from its caches and without them?

    python benchmarks/open_library.py [--files 100000] [--repeats 3]

The embeddings are copies of one small task's, with other names and numbers. Opening reads the entries of all tasks;
without the caches every byte of every file is read and checked.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measure import parser, print_table, say, seconds_of, summary
from _record import write_record
from PIL import Image

from task2vec_ext import Library, build_library


def main() -> None:
    """Write the files, time, write the record after each way."""
    arguments = parser(__doc__, repeats=3)
    arguments.add_argument("--files", type=int, default=100_000)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, options.files)
        result: dict[str, Any] = {"files": options.files, "filters": Library(root).made_with.filters, "seconds": {}}
        for way, times in (("without caches", 1), ("from the caches", options.repeats)):
            say(way)
            result["seconds"][way] = summary(
                [seconds_of(partial(opened, root, options.files), "cpu") for _ in range(times)]
            )
            path = write_record("open_library", result)
    rows = [(way, seconds["median"], seconds["n"]) for way, seconds in result["seconds"].items()]
    print_table(f"{options.files:,} embeddings of {result['filters']:,} filters", ["way", "s", "n"], rows)
    print(path)


def write(root: Path, files: int) -> None:
    """Make a library of one task of small images, and copies of its embedding."""
    say(f"writing {files:,} files")
    images = [(Image.new("L", (64, 64), 40 * i), i % 2) for i in range(6)]
    library = build_library([images], root, "tiny", image_size=64, progress=False)
    (name,) = library.names()
    one = replace(library.embedding(name), group_means=None)
    random = torch.Generator().manual_seed(0)
    for number in range(files):
        fisher = one.fisher * (1 + 0.01 * torch.rand(len(one), dtype=torch.float64, generator=random))
        replace(one, name=f"task{number:06}", fisher=fisher).save(root / "embeddings" / f"{number:06}.safetensors")
    library.remove([name])
    shutil.rmtree(root / "cache", ignore_errors=True)


def opened(root: Path, files: int) -> None:
    """Open the library, as a new process would."""
    if (found := len(Library(root).entries())) != files:
        raise SystemExit(f"open_library: expected {files:,} entries, got {found:,}; nothing timed.")


if __name__ == "__main__":
    main()
