"""Every block of code in the README and in docs/ runs, page by page, and prints what the page shows.

The blocks of a page run in order in one folder, ``python`` in one namespace, ``bash`` line by line. The folder holds
small tasks under the names that the pages use. Three things are replaced:

- downloads: the folder of torch.hub holds random ResNet-34 weights under the file name of the real ones;
- long work: `SHORTER` makes it short;
- other programs: a line of bash whose program is in `NOT_RUN` is left out, for the reason given there.
"""

import ast
import glob
import importlib
import re
import shlex
import shutil
import subprocess
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
from task2vec_ext.demo.tasks import demo_tasks
from task2vec_ext.embed import embed_task
from task2vec_ext.selection import ErrorMatrix

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "```" in path.read_text("utf-8")
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NUMBER = r"-?\d+\.\d+"

RUN = ("python", "bash")
SHOWN = ("text", "yaml", "slurm")  # a text block after a block that runs is its output
NOT_RUN = {
    "pip": ".ci/run installs with the README's own lines",
    "python": "the gallery needs real data",
}
SHORTER = {
    "VariationalSettings(epochs=4)": "VariationalSettings(epochs=1, epoch_samples=4)",
    "min_images=20": "min_images=1",
    "--recipe quick": "--recipe quick --image-size 32",
}
NOISE = {"flowers": ("rose", "tulip"), "birds": ("robin", "wren"), "cars": ("new", "old")}
DRAWN = {"polygons": "polygons", "stars": "stars", "digits": "digits 0-4", "places": "new places"}  # the demo's


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
    """Everything that the pages name: tasks of eight images of noise, tasks of the demo, data sets in small."""
    root = tmp_path_factory.mktemp("materials")
    for name, classes in NOISE.items():
        for c, label in enumerate(classes):
            for i in range(4):
                random = np.random.default_rng([zlib.crc32(name.encode()), c, i])
                pixels = random.integers(0, 128, (40, 40, 3)) + 100 * c * random.random((40, 40, 1))
                for folder in (root, root / "tasks"):
                    save(Image.fromarray(pixels.astype(np.uint8)), folder / name / label / f"{i}.png")
    demo = {task.name: task for task in demo_tasks()}
    for name, drawn in DRAWN.items():
        for i, (image, label) in enumerate(demo[drawn]):
            save(image, root / name / demo[drawn].classes[label] / f"{i:03}.png")
    layouts.cub(root / "CUB_200_2011", (1, 2))
    (root / "inat2018").mkdir()
    layouts.inat2018(root / "inat2018")
    errors = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ErrorMatrix(errors, tuple(NOISE), tuple(NOISE)).write_csv(root / "measured.csv")
    save_file(resnet34(num_classes=2).state_dict(), root / "mine.safetensors")
    return root


def save(image, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


@pytest.fixture(scope="module")
def _embedded_once():
    """Several pages embed the same folders with the same settings: the second time takes what the first one gave."""
    modules = [importlib.import_module(f"task2vec_ext.embed.{name}") for name in ("fisher_embed", "spread")]
    whole, known = embed_task, {}

    def once(task, probe, settings, work):
        key = task.name, task.digest(), probe.fingerprint, probe.preprocess, settings
        if task.digest() is None or key not in known:
            known[key] = whole(task, probe, settings, work)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "embed_task", once)
        yield


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
@pytest.mark.usefixtures("_embedded_once")
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


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("command", ["task2vec demo", "pytest -n auto"])
def test_set_up_is_one_line_of_the_readme_which_ci_runs(command):
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f'readme "{command}"' in ci
    finds = re.search(r"^readme\(\) .*$", ci, re.M)[0]
    found = subprocess.run(
        ["bash", "-c", f'{finds}\nreadme "$1"', "readme", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(rf'pip install "\.\[\w+\]" && {command}\n', found.stdout)


@pytest.mark.parametrize("name", ["", ".data", ".data.sources", ".losses", ".library", ".plot", ".atlas"])
def test_the_reference_has_every_public_name(name):
    module = importlib.import_module(f"task2vec_ext{name}")
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    described = {path.split(".")[-1] for path in re.findall(r"^::: (\S+)$", pages, re.M)}
    assert set(module.__all__) - described == set()


def test_the_list_of_extras_is_complete():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    extras = re.findall(r"^([\w-]+) = \[", project.split("\n[")[0], re.M)
    listed = re.findall(r"^\| (`.*`) \|", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"), re.M)
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(listed))) == sorted(extras)


def parts():
    """Return the subpackages and modules of the package, in the order of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Order of the package")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.M)


def test_contributing_lists_every_part():
    package = ROOT / "task2vec_ext"
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} == set(parts())


def test_imports_point_up_the_list_of_parts():
    package, order = ROOT / "task2vec_ext", parts()
    wrong = []
    for path in package.rglob("*.py"):
        place = path.relative_to(package).with_suffix("").parts
        if place[0] not in order:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = place[: len(place) - node.level]
                names = [node.module] if node.module else [alias.name for alias in node.names]
                used = {(*folder, *name.split("."))[0] for name in names} & set(order)
                wrong += [f"{path.name} uses {part}" for part in used if order.index(part) > order.index(place[0])]
    assert wrong == []
