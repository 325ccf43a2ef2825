"""What needs a GPU, emulated kernels, real data or a browser is skipped by name, or failed where that was promised."""

import os
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import emulation
import pytest
import torch
from PIL import Image

# Small tensors: threads would only wait for each other. The tests of threaded loops ask for them.
torch.set_num_threads(1)
IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # of `pytest -n auto`
if IN_WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start: the other workers use the cores


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Neighbours stay in one worker, which builds their fixtures once; who is done takes tests from the others."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IN_WORKER:  # slow tests first, or one worker would be left with one at the end
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _missing(marker: str) -> str | None:
    """Why tests with this marker cannot run here, or None."""
    if marker == "cuda":
        return None if torch.cuda.is_available() else "no NVIDIA GPU"
    if marker == "simt":
        return emulation.missing()
    if marker == "browser":
        found = find_spec("playwright") is not None and shutil.which("chromium") is not None
        return None if found else "no chromium in PATH, or no playwright"
    folder = os.environ.get("TASK2VEC_REAL_DATA", "")
    return None if (Path(folder) / "tasks.json").is_file() else "TASK2VEC_REAL_DATA names no folder of real data"


def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.manual_seed(0)  # a test draws the same numbers whatever ran before it in its worker
    for marker in ("cuda", "simt", "real_data", "browser"):
        if item.get_closest_marker(marker) and (reason := _missing(marker)):
            if os.environ.get(f"TASK2VEC_REQUIRE_{marker.upper()}") == "1":
                pytest.fail(f"TASK2VEC_REQUIRE_{marker.upper()}=1, but: {reason}", pytrace=False)
            pytest.skip(f"{marker}: {reason}")


@pytest.fixture(scope="session")
def simt():
    """The CUDA kernels on the CPU (tests marked ``simt``): what `task2vec_ext.kernels.native.Runtime` launches."""
    return emulation.load().cuda


@pytest.fixture
def real_data() -> Path:
    """Folder of real images and weights (tests marked ``real_data``)."""
    return Path(os.environ["TASK2VEC_REAL_DATA"])


@pytest.fixture(scope="session")
def browser():
    """The system's chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # Containers run as root, where chromium's own sandbox does not start; the page is ours.
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Opens a page from its file; at the end nothing may have been written on its console."""
    said, pages = [], []

    def open_page(path, **how):
        page = browser.new_page(viewport={"width": 1200, "height": 760}, **how)
        page.set_default_timeout(60_000)  # milliseconds, where others need the cores, too
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request", lambda request: said.append(request.url) if request.url[:5] not in ("file:", "data:") else None
        )
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Four tasks of two classes, three images each."""
    root = tmp_path_factory.mktemp("tasks")
    for t in range(4):
        for c in range(2):
            (root / f"task{t}" / f"class{c}").mkdir(parents=True)
            for i in range(3):
                colour = tuple(random.Random(f"{t}{c}{i}").choices(range(256), k=3))
                Image.effect_noise((50, 50 + t), 60).convert("RGB").point(lambda v, k=colour[0]: v ^ k).save(
                    root / f"task{t}" / f"class{c}" / f"{i}.png"
                )
    return [root / f"task{t}" for t in range(4)]
