"""The demo's tasks: small classifications in four families. A class consists of one kind of image or of several."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from .studio import OUTLINES, REGIONS, Family, Studio, digits, kinds


@dataclass(frozen=True, eq=False)
class DemoTask(Dataset[tuple[Image.Image, int]]):
    """A small balanced task: a map-style torch dataset of (PIL image, label)."""

    name: str
    family: Family
    classes: tuple[str, ...]  # indexed by the label
    images: NDArray[np.uint8]  # [N, TINY_SIZE, TINY_SIZE, 3], RGB
    labels: NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its label."""
        return Image.fromarray(self.images[index]), int(self.labels[index])

    @property
    def targets(self) -> list[int]:
        """All labels; reads no image."""
        return self.labels.tolist()


_Class = tuple[tuple[str, ...], dict[str, Any]]  # kinds, used in turn, and options for all of them


def _each(names: str) -> dict[str, _Class]:
    """Return one class a kind, named after it."""
    return {kind: ((kind,), {}) for kind in kinds(names)}


def _alike(used: tuple[str, ...], option: str, values: dict[str, Any]) -> dict[str, _Class]:
    """Return classes of the same kinds that differ in one option."""
    return {name: (used, {option: value}) for name, value in values.items()}


def task_classes() -> dict[Family, dict[str, dict[str, _Class]]]:
    """Return family -> task -> class -> kinds and options."""
    written = tuple(digits())
    pagoda = tuple(kind for kind, (photo, _) in REGIONS.items() if photo == "china.jpg")
    dahlia = tuple(kind for kind, (photo, _) in REGIONS.items() if photo == "flower.jpg")
    shapes = tuple(kind for kind in OUTLINES if kind != "ring")  # hollow already
    arrows = {"up": 0, "right": 90, "down": 180, "left": 270}
    slopes = _alike(("linear gradient",), "turn", {"across": 0, "down": 90})
    colours = {"true": "none", "grey": "grey", "red for blue": "red for blue"}
    return {
        "handwriting": {
            "digits 0-4": _each("digit 0, digit 1, digit 2, digit 3, digit 4"),
            "digits 5-9": _each("digit 5, digit 6, digit 7, digit 8, digit 9"),
            "new digits": _each("digit 7, digit 8, digit 9"),
            "odd or even digits": {"even": (written[::2], {}), "odd": (written[1::2], {})},
            "tilted digits": _alike(written, "tilt", {"left": 20, "right": -20}),
            "fine or bold digits": _alike(written, "bold", {"fine": -0.8, "bold": 0.8}),
        },
        "photographs": {
            "pagoda or dahlia": {"pagoda": (pagoda, {}), "dahlia": (dahlia, {})},
            "parts of the pagoda": _each("sky, roof, wall, bush"),
            "greenery": _each("bush, pine, shrub, leaf"),
            "new places": _each("water, pine, shrub, dahlia's heart, leaf"),
            "turned patches": _alike(kinds("roof, wall, water, pine"), "edit", {"upright": "none", "turned": "turned"}),
            "blurred patches": _alike(pagoda[1:4], "edit", {"sharp": "none", "blurred": "blurred"}),
            "false colours": _alike(pagoda + dahlia, "edit", colours),
        },
        "drawings": {
            "polygons": _each("triangle, square, pentagon, hexagon"),
            "stars": _each("star4, star5, star8"),
            "new shapes": _each("heart, moon, bolt, drop"),
            "solid or hollow": _alike(shapes, "hollow", {"solid": False, "hollow": True}),
            "arrow directions": _alike(("arrow",), "turn", arrows),
            "counting dots": _each("dots 1, dots 2, dots 3, dots 4, dots 5, dots 6"),
        },
        "textures": {
            "stripes by angle": _each("stripes 0, stripes 45, stripes 90, stripes 135"),
            "checks by scale": _alike(("checks",), "period", {"fine": 6, "medium": 11, "coarse": 20}),
            "noise by spectrum": _each("white noise, pink noise, brown noise"),
            "new textures": _each("waves, rings, weave, cells, spots"),
            "gradients": {**slopes, "radial": (("radial gradient",), {})},
            "fine or coarse": _alike(kinds("stripes, checks, waves, spots"), "period", {"fine": 6, "coarse": 18}),
        },
    }


def demo_tasks(seed: int = 0, per_class: int | None = None) -> list[DemoTask]:
    """Return the demo's 25 tasks in four families: 2 to 6 balanced classes each, images in random order.

    Args:
        seed: The same seed and versions of numpy, pillow and scikit-learn give the same images, bit by bit.
        per_class: Images a class; default: 180 divided by the number of classes.

    Returns:
        The tasks, family by family. No two images share a handwritten digit; patches of photographs may overlap.

    Raises:
        ValueError: If `per_class` is not positive, or larger than the handwriting allows.
    """
    if per_class is not None and per_class < 1:
        raise ValueError(f"demo_tasks: expected per_class >= 1, got {per_class}.")
    studio, tasks = Studio(seed), []
    for family, members in task_classes().items():
        for name, classes in members.items():
            made = [
                (studio.image(used[i % len(used)], **how), label)
                for label, (used, how) in enumerate(classes.values())
                for i in range(per_class or 180 // len(classes))
            ]
            order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(made))
            images = np.stack([made[i][0] for i in order])
            labels = np.array([made[i][1] for i in order], np.int64)
            tasks.append(DemoTask(name, family, tuple(classes), images, labels))
    return tasks
