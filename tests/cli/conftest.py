"""What the commands' tests share."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three tasks of two classes, six images each."""
    root = tmp_path_factory.mktemp("tasks")
    random = np.random.default_rng(0)
    for t in range(3):
        for c in range(2):
            (root / f"task{t}" / f"class{c}").mkdir(parents=True)
            for i in range(6):
                pixels = random.integers(0, 120 + 60 * c, (52, 52 + 4 * t, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / f"task{t}" / f"class{c}" / f"{i}.png")
    return [root / f"task{t}" for t in range(3)]
