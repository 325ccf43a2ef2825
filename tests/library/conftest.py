import pytest
from libraries import tasks_of
from small import small_probe

from task2vec_ext import Library, build_library


@pytest.fixture
def built(tmp_path) -> Library:
    """Five embedded tasks in memory."""
    return build_library(tasks_of(5), tmp_path / "library", small_probe())
