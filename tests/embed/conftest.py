from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of eight noisy images."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name, colour in (("cats", (200, 60, 40)), ("dogs", (60, 90, 190))):
        (root / name).mkdir()
        for i in range(8):
            pixels = np.clip(random.normal(colour, 40, (50 + i, 60, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root
