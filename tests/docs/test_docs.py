"""Every block of code in the README and in docs/ runs, page by page, and prints what the page shows.

A page's blocks run in order in one folder, ``python`` in one namespace, ``bash`` line by line. In the folder lie small
tasks under the names that the pages use. It stands in for three things, and for nothing else:

- the network: where torch.hub keeps what it has downloaded lie random ResNet-34 weights, under the real ones' name;
- time: `SHORTER` takes the place of what would run for hours;
- the machine: a line of bash whose program is in `NOT_RUN` is left out, for the reason given there.
"""

import glob
import importlib
import json
import re
import shlex
import shutil
import sys
import zlib
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import ResNet34_Weights, resnet34

from task2vec_ext import cli
from task2vec_ext.selection import ErrorMatrix

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "```" in path.read_text("utf-8")
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NUMBER = r"-?\d+\.\d+"

RUN = ("python", "bash")
SHOWN = ("text", "yaml", "slurm")  # of which a text after a block that runs is what that printed
NOT_RUN = {
    "pip": ".ci/run installs by the README's own lines",
    "python": "benchmarks and the gallery need the real data",
    "torchrun": "tests/test_team.py starts two processes by it",
}
SHORTER = {
    'estimator="variational")': 'estimator="variational", epochs=1, epoch_samples=4)',
    "rel_error=0.05)": "rel_error=0.5)",
    "min_images=20": "min_images=1",
    "--recipe quick": "--recipe quick --image-size 32",
}
TASKS = {"flowers": ("rose", "tulip"), "birds": ("robin", "wren"), "cars": ("new", "old")}


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory):
    """What stands in for the network: a folder of torch.hub with random weights for ImageNet's."""
    home = tmp_path_factory.mktemp("torch")
    file = home / "hub" / "checkpoints" / Path(ResNet34_Weights.IMAGENET1K_V1.url).name
    file.parent.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(resnet34().state_dict(), file)
    return home


@pytest.fixture(scope="session")
def materials(tmp_path_factory):
    """Everything that the pages name; tasks have eight images, the fewest that have error bars."""
    root = tmp_path_factory.mktemp("materials")
    for name, classes in TASKS.items():
        for c, label in enumerate(classes):
            for i in range(4):
                random = np.random.default_rng([zlib.crc32(name.encode()), c, i])
                pixels = random.integers(0, 128, (40, 40, 3)) + 100 * c * random.random((40, 40, 1))
                for file in (root / name / label / f"{i}.png", root / "tasks" / name / label / f"{i}.png"):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels.astype(np.uint8)).save(file)
    layouts.cub(root / "CUB_200_2011", (1, 2))
    (root / "inat2018").mkdir()
    layouts.inat2018(root / "inat2018")
    errors = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ErrorMatrix(errors, tuple(TASKS), tuple(TASKS)).write_csv(root / "measured.csv")
    save_file(resnet34(num_classes=2).state_dict(), root / "mine.safetensors")
    return root


@pytest.fixture
def folder(tmp_path, materials):
    """A folder of a page's own with everything that it names."""
    return shutil.copytree(materials, tmp_path / "work")


def blocks(text):
    """Yield (language, code, line number, what is shown as its output) of every block."""
    found = list(BLOCK.finditer(text))
    for block, after in zip(found, [*found[1:], None], strict=True):
        directly = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
        yield block[1], block[2], text.count("\n", 0, block.start()) + 1, after[2] if directly else None


def run_bash(code, monkeypatch):
    """Run lines of a shell: `task2vec` in this process, which has torch loaded; other programs must be in NOT_RUN."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"\w+=", words[0]):  # of the environment
            words.pop(0)
        if not words or words[0] in NOT_RUN:
            continue
        program, *arguments = (match for word in words for match in sorted(glob.glob(word)) or [word])
        assert program == "task2vec", f"{line!r}: run it here, or name it in NOT_RUN with the reason"
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, line


def assert_alike(printed, shown):
    """The same words, and numbers within what another processor's order of sums and the rounding of the text leave."""
    assert re.sub(NUMBER, "#", printed).split() == re.sub(NUMBER, "#", shown).split()
    numbers = [[float(n) for n in re.findall(NUMBER, part)] for part in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("default::task2vec_ext.Task2VecWarning")  # few images
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, folder, downloaded, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TORCH_HOME", str(downloaded))
    names = {"__name__": "__main__"}
    for language, code, line, shown in blocks(page.read_text(encoding="utf-8")):
        assert language in (*RUN, *SHOWN), f"{page.name}:{line}: a block of {language or 'no language'}"
        for long, short in SHORTER.items():
            code = code.replace(long, short)
        capsys.readouterr()
        if language == "python":
            exec(compile("\n" * line + code, str(page), "exec"), names)
        elif language == "bash":
            run_bash(code, monkeypatch)
        if shown is not None and language in RUN:
            assert_alike(capsys.readouterr().out, shown)


def test_nothing_is_left_out_that_no_page_has():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [part for part in (*SHORTER, *(f"{program} " for program in NOT_RUN)) if part not in text] == []


def test_set_up_and_tests_are_one_command_each_in_the_first_30_lines():
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:30]
    commands = [line for line in first if line.startswith("pip install")]
    assert len(commands) == 2
    assert "task2vec demo" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.parametrize("name", ["", ".data", ".data.sources", ".losses", ".plot", ".atlas"])
def test_the_reference_has_every_public_name(name):
    module = importlib.import_module(f"task2vec_ext{name}")
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    described = {path.split(".")[-1] for path in re.findall(r"^::: (\S+)$", pages, re.M)}
    assert set(module.__all__) - described == set()


def test_every_benchmark_s_record_is_on_its_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.page import page

    text = page(ROOT / "benchmarks" / "results", (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    records = sorted((ROOT / "benchmarks" / "results").glob("*/*.json"))
    assert re.findall(r"^### (\w+)$", text, re.M) == [path.stem for path in records]
    assert all(f"results/{path.parent.name}/{path.name}" in text for path in records)


def test_a_record_is_shown_with_all_its_figures(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.page import page

    result = {
        "threads": 2,
        "ways": {
            "ours": {"seconds": {"median": 0.5, "quartiles": [0.4, 0.625], "n": 3}},
            "theirs": {"peak_bytes": 1234},
        },
        "rows": [{"task": "a|b", "curve": [{"samples": 1, "error": 0.25}, {"samples": 2, "error": 1e-9}]}],
    }
    record = {
        "benchmark": "asked_twice",
        "command": "python -m benchmarks.asked",
        "commit": "0123456789abcdef",
        "hardware": {"cpu": "a CPU", "cores": 4, "gpu": None},
        "versions": {"torch": "2", "python": "3"},
        "result": result,
    }
    (tmp_path / "cpu-x").mkdir()
    (tmp_path / "cpu-x" / "asked_twice.json").write_text(json.dumps(record))
    text = page(tmp_path, "| `python -m benchmarks.asked --data DIR` | Why? |\n")
    for line in (
        "Why? `python -m benchmarks.asked`",
        "a CPU, 4 threads; torch 2, Python 3; commit 012345678 · [JSON](results/cpu-x/asked_twice.json)",
        "| threads | 2 |",
        "| ways | seconds | peak bytes |",
        "| ours | 0.5 (0.4–0.625) |  |",
        "| theirs |  | 1,234 |",
        "| a\\|b | 1 | 0.25 |",
        "| a\\|b | 2 | 1e-09 |",
    ):
        assert line in text.splitlines(), line
    with pytest.raises(SystemExit, match=r"expected a row for asked_twice in benchmarks/README\.md"):
        page(tmp_path, "")
