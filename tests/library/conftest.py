import shutil
from pathlib import Path

import pytest
from libraries import tasks_of
from small import small_probe

from task2vec_ext import Library, build_library


@pytest.fixture(scope="session")
def five(tmp_path_factory) -> Path:
    """The folder of `built`, built once."""
    return build_library(tasks_of(5), tmp_path_factory.mktemp("five") / "library", small_probe()).folder


@pytest.fixture
def built(five, tmp_path) -> Library:
    """Five embedded tasks in memory; a copy for each test."""
    return Library(shutil.copytree(five, tmp_path / "library"))
