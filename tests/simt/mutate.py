"""Which missing barriers and waits are noticed? Run by hand: `python tests/simt/mutate.py [TEXT]`, about ten minutes.

Every mutant is csrc/cuda with one barrier or lock left out, one wait for copies weakened by a group, or one check of
alignment ignored. races.cpp is run with each, under the sanitizers and without. TEXT: only mutants whose place contains
it. The table is that of docs/cuda_without_gpu.md; the exit status is 1 if the sanitizers miss a mutant.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import emulation

CUDA = emulation.ROOT / "csrc" / "cuda"
PARTS = {  # the others: convolution
    "launch.h": "threads",
    "local_noise.cu": "noise",
    "pairwise.cu": "pairwise",
    "weight_noise.cu": "noise",
}
# What is replaced, by what, and the name of that.
CHANGES = [
    (r"__sync(?:threads|warp)\([^)]*\);", ";", "no barrier"),
    (r"copies_wait<(.+)>\(\);", r"copies_wait<\1 + 1>();", "one group less is waited for"),
    (r"reinterpret_cast<uintptr_t>\([\w.]+\) % (?:16|\(4 \* size\)) == 0", "true", "alignment not checked"),
    (r"const std::lock_guard<std::mutex> \w+\(\w+\);", ";", "no lock"),
]
SECONDS = 300


class Mutant(NamedTuple):
    path: Path
    line: int
    change: str
    text: str  # of the whole file

    @property
    def place(self) -> str:
        return f"`{self.path.name}`:{self.line}"


def mutants() -> Iterator[Mutant]:
    for path in sorted(CUDA.glob("*.*")):
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines):
            code = line.split("//")[0]
            for pattern, replacement, change in CHANGES:
                changed = re.sub(pattern, replacement, code)
                if changed != code:
                    yield Mutant(path, number + 1, change, "\n".join([*lines[:number], changed, *lines[number + 1 :]]))


class Program:
    """races.cpp, of which every mutant recompiles what it touches."""

    def __init__(self, folder: Path, watched: Sequence[str]) -> None:
        self.folder, self.watched = folder, watched
        self.sources = emulation.race_sources(emulation.ROOT, watched)
        folder.mkdir()
        self.objects = emulation.compile_objects(self.sources, folder)

    def run(self, mutant: Mutant | None, *parts: str) -> str:
        """Return what the run says first of anything wrong, or "-"."""
        objects = self.objects
        if mutant:
            root = self.folder / "mutant"
            shutil.copytree(emulation.ROOT / "csrc", root / "csrc", dirs_exist_ok=True)
            (root / "csrc" / "cuda" / mutant.path.name).write_text(mutant.text, encoding="utf-8")
            touched = {
                (root / source.relative_to(emulation.ROOT) if source.suffix == ".cu" else source): flags
                for source, flags in self.sources.items()
                if source == mutant.path or mutant.path.suffix != ".cu"
            }
            new = {path.name: path for path in emulation.compile_objects(touched, root, root)}
            objects = [new.get(path.name, path) for path in self.objects]
        program = self.folder / "races"
        emulation._run([*emulation._compiler(), *self.watched, *objects, "-o", program])
        options = {"TSAN_OPTIONS": "halt_on_error=1"}
        command = ["timeout", str(SECONDS), *emulation.watched_command(program, *parts)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**emulation._environment(), **options}
        )
        output = done.stdout + done.stderr
        for pattern, words in (
            (r"SUMMARY: ThreadSanitizer: (.+?) \S*?([\w.]+:\d+)", r"\1, \2"),
            (r"([\w.]+:\d+):\d+: runtime error: .*(misaligned) address", r"\2, \1"),
            (r"WRONG simt: (.+)", r"error: \1"),
            (r"WRONG (.+): error (\S+)", r"wrong result (\2)"),
        ):
            if found := re.search(pattern, output):
                return found.expand(words)
        return "-" if done.returncode == 0 else f"exit status {done.returncode}"


def main(text: str = "") -> int:
    with tempfile.TemporaryDirectory() as folder:
        watched = Program(Path(folder, "watched"), emulation.WATCHED)
        plain = Program(Path(folder, "plain"), ())
        missed = count = 0
        print("| place | change | ThreadSanitizer or UBSan | emulation alone |\n|---|---|---|---|")
        for mutant in mutants():
            if text not in mutant.place:
                continue
            part = PARTS.get(mutant.path.name, "convolution")
            seen = watched.run(mutant, part)
            count, missed = count + 1, missed + (seen == "-")
            print(f"| {mutant.place} | {mutant.change} | {seen} | {plain.run(mutant, part)} |", flush=True)
        print(f"\n{count - missed} of {count} reported")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
