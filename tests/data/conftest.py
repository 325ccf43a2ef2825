"""Folders of images that the tests of tasks and of their reading share."""

import numpy as np
import pytest
from layouts import image
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Ten readable images of different sizes and modes in two classes."""
    generator = np.random.default_rng(0)
    root = tmp_path / "pets"
    for i in range(10):
        colours = generator.integers(0, 256, (11 + i, 17, 3), dtype=np.uint8)
        path = root / ("cats" if i < 5 else "dogs") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).convert(["RGB", "L", "RGBA", "P", "1"][i % 5]).save(path)
    return root


@pytest.fixture
def nested(tmp_path):
    """Four images of two classes, in folders below folders and of several endings, beside what is left out."""
    root = tmp_path / "pets"
    image(root / "dogs" / "b.png", 20)
    image(root / "dogs" / "a.PNG", 10)
    image(root / "cats" / "deep" / "er" / "c.bmp", 30)
    image(root / "cats" / "z.gif", 40)
    image(root / "cats" / ".hidden.png", 50)
    image(root / ".hidden" / "a.png", 60)
    image(tmp_path / "stray.png", 70)
    (root / "dogs" / "notes.txt").write_text("no image")
    return root
