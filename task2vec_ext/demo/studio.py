"""Images for the demo: real handwriting, patches of two real photographs, drawn shapes and drawn textures.

Nothing is downloaded. The handwriting (1,797 digits of 8x8 pixels) and the photographs (a pagoda, a dahlia) ship with
scikit-learn; the rest is drawn here. A *kind* ("digit 3", "roof", "moon") is one way of making images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ..probe.tiny import TINY_SIZE

Family = Literal["handwriting", "photographs", "drawings", "textures"]
Pixels = NDArray[np.uint8]  # [TINY_SIZE, TINY_SIZE, 3]
_Floats = NDArray[np.floating[Any]]


def kinds(names: str) -> tuple[str, ...]:
    """Return the kinds of a comma-separated list."""
    return tuple(names.split(", "))


TRAINED: dict[Family, tuple[str, ...]] = {
    "handwriting": kinds("digit 0, digit 1, digit 2, digit 3, digit 4, digit 5, digit 6"),
    "photographs": kinds("sky, roof, wall, bush, petals, backdrop"),
    "drawings": kinds("circle, ring, triangle, square, star5, cross, arrow, dots 1, dots 2, dots 3"),
    "textures": kinds("stripes 0, stripes 45, stripes 90, stripes 135, fine checks, coarse checks, bricks")
    + kinds("white noise, brown noise, linear gradient"),
}
"""Kinds that the shipped probe was trained on, as one classification."""

UNSEEN: dict[Family, tuple[str, ...]] = {
    "handwriting": kinds("digit 7, digit 8, digit 9"),
    "photographs": kinds("water, pine, shrub, dahlia's heart, leaf"),
    "drawings": kinds("pentagon, hexagon, star4, star8, heart, moon, bolt, drop, dots 4, dots 5, dots 6"),
    "textures": kinds("waves, rings, weave, cells, spots, pink noise, radial gradient"),
}
"""Kinds that the probe never saw in training. Each family's task called "new …" consists of these."""

TRAINING_DIGITS = 80
"""The probe was trained on the first 80 of each trained digit; the demo takes the others."""


def _sklearn_datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        message = "demo: expected scikit-learn (digits, photographs), got none; pip install scikit-learn."
        raise ModuleNotFoundError(message) from error
    return datasets


def _colour(ink: _Floats, rng: Generator, *, grain: float, pale_paper: bool = False) -> Pixels:
    """Return an image in two random colours, light and dark, from the share of `ink` [H, W]; `grain` in levels."""
    low, high = ((185, 10), (250, 100)) if pale_paper else ((10, 10), (245, 245))
    paper, pen = rng.uniform(low, high, (3, 2)).T
    while abs((paper - pen) @ (0.3, 0.59, 0.11)) < 80:  # less contrast would hide the drawing
        paper, pen = rng.uniform(low, high, (3, 2)).T
    mixed = paper + ink[..., None] * (pen - paper) + rng.normal(0, grain, (*ink.shape, 1))
    return np.clip(mixed, 0, 255).astype(np.uint8)


@cache
def digits() -> dict[str, _Floats]:
    """Return handwritten digits by kind, each [M, 8, 8] in 0…1, in the order of the data set."""
    data = _sklearn_datasets().load_digits()
    return {f"digit {d}": data.images[data.target == d] / 16.0 for d in range(10)}


def _write(digit: _Floats, rng: Generator, *, tilt: float = 0.0, bold: float = 0.0) -> Pixels:
    """Return a digit [8, 8] in ink on paper: enlarged smoothly, turned by `tilt` degrees; `bold` from -1 to 1."""
    side = int(rng.integers(36, 45))
    left, top = (int(v) for v in (TINY_SIZE - side) // 2 + rng.integers(-2, 3, 2))
    page = Image.new("F", (TINY_SIZE, TINY_SIZE))
    grown = Image.fromarray(digit.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    page.paste(grown, (left, top))
    page = page.rotate(tilt + rng.uniform(-8, 8), Image.Resampling.BILINEAR)
    edge = 0.45 - 0.25 * bold + rng.uniform(-0.08, 0.08)
    ink = 1 / (1 + np.exp(-14 * (np.asarray(page, np.float64) - edge)))  # sharpens the stroke again
    return _colour(ink, rng, grain=6, pale_paper=True)


# Photographs

_Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
REGIONS: dict[str, tuple[str, tuple[_Box, ...]]] = {
    "sky": ("china.jpg", ((330, 0, 640, 170), (0, 0, 96, 120))),
    "roof": ("china.jpg", ((125, 70, 300, 130), (95, 148, 325, 190), (75, 242, 345, 284))),
    "wall": ("china.jpg", ((105, 185, 325, 235), (85, 278, 335, 340))),
    "bush": ("china.jpg", ((340, 320, 555, 427),)),
    "water": ("china.jpg", ((375, 225, 540, 310),)),
    "pine": ("china.jpg", ((565, 170, 640, 427),)),
    "shrub": ("china.jpg", ((0, 345, 195, 427),)),
    "petals": ("flower.jpg", ((190, 110, 260, 300), (350, 110, 425, 300), (215, 255, 400, 335))),
    "dahlia's heart": ("flower.jpg", ((255, 160, 360, 255),)),
    "leaf": ("flower.jpg", ((0, 65, 145, 335),)),
    "backdrop": ("flower.jpg", ((450, 0, 640, 370), (220, 0, 400, 70))),
}
_EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda patch: patch,
    "turned": lambda patch: patch.transpose(Image.Transpose.ROTATE_90),
    "blurred": lambda patch: patch.filter(ImageFilter.GaussianBlur(1.5)),
    "red for blue": lambda patch: Image.merge("RGB", patch.split()[::-1]),
    "grey": lambda patch: patch.convert("L").convert("RGB"),
}


@cache
def _photograph(name: str) -> Image.Image:
    return Image.fromarray(_sklearn_datasets().load_sample_image(name))


def _patch(region: str, rng: Generator, *, edit: str = "none") -> Pixels:
    """Return a square of 28 to 48 pixels from a region: enlarged, mirrored and darkened at random, then edited."""
    name, boxes = REGIONS[region]
    box = boxes[rng.integers(len(boxes))]
    side = int(rng.integers(28, min(48, box[2] - box[0], box[3] - box[1]) + 1))
    left, top = (int(rng.integers(box[i], box[i + 2] - side + 1)) for i in (0, 1))
    patch = _photograph(name).crop((left, top, left + side, top + side))
    levels = np.asarray(patch.resize((TINY_SIZE, TINY_SIZE), Image.Resampling.BICUBIC), np.float64)
    levels = levels[:, :: rng.choice((-1, 1))] * rng.uniform(0.8, 1.0)
    return np.asarray(_EDITS[edit](Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))))


def _star(points: int, notch: float = 1.0) -> _Floats:
    """Return the corners [2 * points, 2] of a star, the first at the top; `notch` is the radius of the inner ones."""
    corner = np.arange(2 * points)
    radius, turn = np.where(corner % 2, notch, 1.0), np.pi * corner / points
    return np.stack([radius * np.sin(turn), -radius * np.cos(turn)], 1)


def _outlines() -> dict[str, _Floats]:
    """Return outlines [corners, 2] by kind, within radius 1 of the centre, y downwards."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    bulges = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    half = np.linspace(0.5 * np.pi, 1.5 * np.pi, 30)
    sickle = np.r_[np.cos(half), 0.35 * np.cos(half)[::-1]] + 0.5
    tenths = {
        "cross": "-3,-9 3,-9 3,-3 9,-3 9,3 3,3 3,9 -3,9 -3,3 -9,3 -9,-3 -3,-3",
        "arrow": "0,-10 7,-2 3,-2 3,10 -3,10 -3,-2 -7,-2",
        "bolt": "2,-10 -6,2 -1,2 -3,10 6,-3 1,-3 5,-10",
    }
    return {
        **{kind: _star(n)[::2] for n, kind in enumerate(("triangle", "square", "pentagon", "hexagon"), 3)},
        **{kind: _star(n, r) for kind, n, r in (("star4", 4, 0.4), ("star5", 5, 0.42), ("star8", 8, 0.55))},
        **{kind: np.array([p.split(",") for p in at.split()], float) / 10 for kind, at in tenths.items()},
        **dict.fromkeys(("circle", "ring"), _star(40)),
        "heart": np.stack([16 * np.sin(t) ** 3, -bulges], 1) / 17,
        "moon": np.stack([sickle, np.r_[np.sin(half), np.sin(half)[::-1]]], 1),
        "drop": np.stack([0.9 * np.sin(t) * np.sin(t / 2) ** 1.5, -np.cos(t)], 1),
    }


OUTLINES = _outlines()


def _draw(kind: str, rng: Generator, *, hollow: bool = False, turn: float = 0.0) -> Pixels:
    """Return a shape, or dots, of random place and size; `turn` in degrees clockwise, ± 15 at random."""
    fine = 3 * TINY_SIZE  # drawn three times as large and averaged down: smooth edges
    sheet = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(sheet)
    if kind.startswith("dots"):
        for cell in rng.permutation(9)[: int(kind.split()[1])]:  # of a 3x3 grid: the dots never touch
            r = rng.uniform(0.06, 0.11) * fine
            x, y = fine * ((np.array([cell % 3, cell // 3]) + 0.5) / 3 + rng.uniform(-0.04, 0.04, 2))
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    else:
        angle = np.deg2rad(turn + rng.uniform(-15, 15))
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = OUTLINES[kind] @ rotation * rng.uniform(0.25, 0.4) + 0.5 + rng.uniform(-0.07, 0.07, 2)
        points = [(float(x), float(y)) for x, y in fine * corners]
        if hollow or kind == "ring":
            pen.line([*points, *points[:2]], fill=255, width=int(rng.integers(7, 12)), joint="curve")
        else:
            pen.polygon(points, fill=255)
    return _colour(np.asarray(sheet.reduce(3), np.float64) / 255, rng, grain=0)


def _noise(exponent: float, rng: Generator) -> _Floats:
    """Return noise [H, W] around 0.5 whose amplitudes fall as frequency to the minus `exponent`."""
    frequency = np.hypot(np.fft.fftfreq(TINY_SIZE)[:, None], np.fft.rfftfreq(TINY_SIZE)[None])
    frequency[0, 0] = np.inf  # no mean
    white = np.fft.rfft2(rng.normal(size=(TINY_SIZE, TINY_SIZE)))
    grain: _Floats = np.fft.irfft2(white / frequency**exponent)
    return 0.5 + 0.22 * grain / grain.std()


def _wave(phase: _Floats) -> _Floats:
    """Return a wave in 0…1 of period 1 with flat tops and valleys."""
    return 0.5 + 0.5 * np.tanh(2.5 * np.sin(2 * np.pi * phase))


def _cells(a: _Floats, b: _Floats, rng: Generator) -> _Floats:
    """Return borders of Voronoi cells: 1 where two of the random seeds, one a unit square, are equally near."""
    seeds = rng.uniform(-9, 9, (324, 2))
    near = np.sort(np.hypot(a[..., None] - seeds[:, 0], b[..., None] - seeds[:, 1]), -1)
    return np.exp(-40 * (near[..., 1] - near[..., 0]) ** 2)


_PATTERNS: dict[str, Callable[[_Floats, _Floats, Generator], _Floats]] = {  # ink at places a, b in periods
    "stripes": lambda a, b, _: _wave(a),
    "checks": lambda a, b, _: 0.5 + 0.5 * np.tanh(4 * np.sin(2 * np.pi * a) * np.sin(2 * np.pi * b)),
    "bricks": lambda a, b, _: 1.0 * (2 * b % 1 > 0.2) * ((a + 0.5 * np.floor(2 * b)) % 1 > 0.1),
    "waves": lambda a, b, _: _wave(a + 0.3 * np.sin(np.pi * b)),
    "rings": lambda a, b, _: _wave(np.hypot(a, b)),
    "weave": lambda a, b, _: 0.5 * np.where((a // 1 + b // 1) % 2 < 1, 1 + _wave(3 * a), _wave(3 * b)),
    "cells": _cells,
    "spots": lambda a, b, _: 1 / (1 + np.exp(40 * (np.hypot(a % 1 - 0.5, b % 1 - 0.5) - 0.3))),
}


def _texture(kind: str, rng: Generator, *, period: float | None = None, turn: float | None = None) -> Pixels:
    """Return a texture; `period` in pixels and `turn` in degrees are random, or the kind's own, unless given."""
    first, last = kind.split()[0], kind.split()[-1]
    if last == "noise":
        ink = _noise({"white": 0.0, "pink": 1.0, "brown": 2.0}[first], rng)
        return _colour(np.clip(ink, 0, 1), rng, grain=3)
    turn = rng.uniform(0, 360) if turn is None else turn
    angle = np.deg2rad((float(last) if last.isdigit() else turn) + rng.uniform(-8, 8))
    y, x = np.mgrid[:TINY_SIZE, :TINY_SIZE] - TINY_SIZE / 2
    u = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(-8, 8)
    v = y * np.cos(angle) - x * np.sin(angle) + rng.uniform(-8, 8)
    if last == "gradient":
        ink = np.hypot(u, v) / 34 if first == "radial" else 0.5 + u / 60
    else:
        period = period or rng.uniform(*{"fine": (5, 7), "coarse": (16, 24)}.get(first, (8, 14)))
        period *= rng.uniform(0.9, 1.1)  # pixels
        ink = _PATTERNS[first if first in _PATTERNS else last](u / period, v / period, rng)
    return _colour(np.clip(ink, 0, 1), rng, grain=3)


class Studio:
    """Make images of any kind from one seed. No two images of the demo share a handwritten digit.

    Args:
        seed: The same seed and the same calls give the same images.
        training: Use the probe's training digits, repeatedly, instead of the demo's, each once.
    """

    def __init__(self, seed: int, *, training: bool = False) -> None:  # noqa: D107 - the class says it
        self._rng = np.random.default_rng(seed)
        self._training = training
        self._left: dict[str, list[int]] = {}

    def image(self, kind: str, **how: Any) -> Pixels:
        """Return a new image of a kind in `TRAINED` or `UNSEEN`, with the options of its family."""
        if kind.startswith("digit"):
            return _write(self._deal(kind), self._rng, **how)
        if kind in REGIONS:
            return _patch(kind, self._rng, **how)
        if kind in OUTLINES or kind.startswith("dots"):
            return _draw(kind, self._rng, **how)
        return _texture(kind, self._rng, **how)

    def _deal(self, kind: str) -> _Floats:
        images = digits()[kind]
        if kind not in self._left or (self._training and not self._left[kind]):
            both = slice(None) if kind in UNSEEN["handwriting"] else slice(TRAINING_DIGITS, None)
            deck = np.arange(len(images))[slice(TRAINING_DIGITS) if self._training else both]
            self._left[kind] = self._rng.permutation(deck).tolist()
        if not self._left[kind]:
            raise ValueError(f"demo: expected enough of {kind}, got none: all are used; ask for fewer images a class.")
        return images[self._left[kind].pop()]
