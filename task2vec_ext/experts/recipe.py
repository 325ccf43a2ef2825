"""Recipes: how a network is fine-tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ..words import HeadMethod, RecipeName

Schedule = Literal["step", "cosine"]

_STEP_AFTER, _STEP = 2 / 3, 0.1  # the paper: ÷10 after epoch 40 of 60


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned: first its head alone, on fixed features, then all of it by SGD.

    Args:
        head: How the head is fitted first: ``"adam"`` (10 epochs) or ``"lbfgs"`` (to convergence).
        epochs: How often the whole network is trained on all images.
        learning_rate: Learning rate at the start, > 0.
        schedule: ``"step"``: a tenth in the last third; ``"cosine"``: down to 0.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: L2 penalty inside the gradient.
        batch_size: Images in a step; BatchNorm takes its statistics over them.
        shift: Largest random shift as a share of the image's side, in [0, 0.5); borders are mirrored.
        flip: Mirror half of the images, at random. Not for digits and text.
        batch_statistics: Normalise by each batch's statistics in BatchNorm, and update the running ones; False: keep
            those of pre-training, which few images of one domain would only spoil.

    Raises:
        ValueError: If a value is impossible.
    """

    head: HeadMethod
    epochs: int
    learning_rate: float
    schedule: Schedule
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    shift: float = 0.125
    flip: bool = False
    batch_statistics: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        for name, fits, expected in (
            ("head", self.head in get_args(HeadMethod), "'adam' or 'lbfgs'"),
            ("epochs", self.epochs >= 1, "a whole number ≥ 1"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a number > 0"),
            ("schedule", self.schedule in get_args(Schedule), "'step' or 'cosine'"),
            ("momentum", 0 <= self.momentum < 1, "a number in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a number ≥ 0"),
            ("batch_size", self.batch_size >= 2, "a whole number ≥ 2 (BatchNorm needs two images)"),
            ("shift", 0 <= self.shift < 0.5, "a number in [0, 0.5)"),
        ):
            if not fits:
                raise ValueError(f"Recipe: expected {name} as {expected}, got {getattr(self, name)!r}; correct it.")

    def rate(self, done: float) -> float:
        """Return the learning rate after a share of all steps, ``0 ≤ done < 1``."""
        if self.schedule == "step":
            return self.learning_rate * (_STEP if done >= _STEP_AFTER else 1)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


RECIPES: dict[RecipeName, Recipe] = {
    # Achille et al. 2019, §5. Momentum, batch size and augmentation, which it does not state, are the usual ones.
    "paper": Recipe("adam", 60, 1e-3, "step", flip=True),
    # For a few hundred images. Statistics of such batches spoil the features: experts of 300 birds or characters
    # (ResNet-18, 96 px) erred on 42 % and 67 % of their own held-out images with them, on 30 % and 32 % without, and
    # on other birds more than ImageNet's features do. 1e-2 suits characters and harms all else. Text is never mirrored.
    "quick": Recipe("lbfgs", 5, 3e-3, "cosine", batch_size=32, batch_statistics=False),
}
AnyRecipe: TypeAlias = "RecipeName | Recipe"


def as_recipe(recipe: AnyRecipe) -> Recipe:
    """Return the recipe of a name; a `Recipe` is returned as it is."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"as_recipe: expected 'paper', 'quick' or a Recipe, got {recipe!r}.")
    return RECIPES[recipe]
