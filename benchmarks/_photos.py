"""JPEG files that decode like photographs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

_GRAIN = 0.012
"""Standard deviation of the grain, grey levels per pixel of the longer side: at quality 90 the files of 500 and 800 px
then have 80 and 230 kB, where ImageNet's have 110 and iNaturalist's 275."""


def write_photos(folder: Path, side: int, count: int, sources: Path | None = None, classes: int = 4) -> list[Path]:
    """Write `count` JPEGs (quality 90, 4:2:0) whose longer side is `side` pixels, in class folders.

    Real images below `sources` are enlarged (bicubic), and get the grain that enlarging lacks; without `sources` all is
    noise at several scales. 24 different ones are made; the others are copies of them, as slow to decode.
    """
    found = sorted(path for path in (sources.rglob("*") if sources else ()) if path.suffix in (".jpg", ".png"))
    contents: list[bytes] = []
    random = np.random.default_rng(0)
    written = []
    for number in range(count):
        path = folder / f"class{number % classes}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(contents) < 24:
            image = _enlarged(found[number * len(found) // 24], side, random) if found else _noise(side, random)
            image.save(path, quality=90)
            contents.append(path.read_bytes())
        else:
            path.write_bytes(contents[number % 24])
        written.append(path)
    return written


def _enlarged(file: Path, side: int, random: np.random.Generator) -> Image.Image:
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = side / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, float) + random.normal(0, _GRAIN * side, (image.height, image.width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _noise(side: int, random: np.random.Generator) -> Image.Image:
    canvas = np.full((side * 3 // 4, side, 3), 128.0)
    for scale, strength in itertools.zip_longest((2, 8, 64), (12, 25, 30)):
        noise = random.normal(128, strength, (side // scale + 1, side // scale + 1, 3)).clip(0, 255).astype(np.uint8)
        large = Image.fromarray(noise).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        canvas += np.asarray(large, float) - 128
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
