"""Every block of code in the README and in docs/ runs, page by page, and prints what the page shows.

A page's blocks run in order in one folder, ``python`` in one namespace, ``bash`` line by line. In the folder lie small
tasks under the names that the pages use. It stands in for three things, and for nothing else:

- the network: where torch.hub keeps what it has downloaded lie random ResNet-34 weights, under the real ones' name;
- time: `SHORTER` takes the place of what would run for hours;
- the machine: a line of bash whose program is in `NOT_RUN` is left out, for the reason given there.
"""

import glob
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
from torchvision.models import ResNet34_Weights, resnet34

from task2vec_ext import cli, fisher_embed, load_probe
from task2vec_ext.expert import save_expert
from task2vec_ext.selection import ErrorMatrix

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "```" in path.read_text("utf-8")
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NUMBER = r"-?\d+\.\d+"

RUN = ("python", "bash")
SHOWN = ("text", "yaml", "slurm")  # of which a text after a block that runs is what that printed
NOT_RUN = {
    "pip": ".ci/run installs by the README's own lines",
    "torchrun": "tests/test_library.py and tests/test_team.py start processes",
}
SHORTER = {
    'estimator="variational")': 'estimator="variational", epochs=1, epoch_samples=4)',
    "rel_error=0.05)": "rel_error=0.5)",
    "min_pictures=20": "min_pictures=1",
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
    """Everything that the pages name: tasks of eight pictures (the fewest that have error bars), experts, errors."""
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
    probe = load_probe("tiny")
    for name in ("birds", "cars"):  # experts that were never fine-tuned
        expert = save_expert(probe, root / "experts", name, num_pictures=8)
        fisher_embed(root / name, probe).save(expert.embedding_file)
    errors = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ErrorMatrix(errors, tuple(TASKS), tuple(TASKS)).write_csv(root / "errors.csv")
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
@pytest.mark.filterwarnings("default::task2vec_ext.Task2VecWarning")  # few pictures
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
