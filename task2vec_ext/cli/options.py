"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Specs = Annotated[
    list[str],
    Argument(metavar="SPEC...", help="Folders of class folders, or SOURCE:WHAT, e.g. cub:DIR (docs/data_sources.md)."),
]
Folder = Annotated[Path, Argument(metavar="DIR", help="A library, or a folder of embeddings (.safetensors).")]
Alpha = Annotated[float, Option(help="α of asym and asym_scaled: weight of the distance to the trivial task.")]
ProbeName = Annotated[
    str, Option(help="A torchvision network (resnet50, vit_b_16, …), timm:NAME, or tiny (no download).")
]
Weights = Annotated[
    str | None, Option(help="Checkpoint (.safetensors, .pth), or torchvision's name for weights; default: ImageNet.")
]
NumSamples = Annotated[int | None, Option(min=1, help="At most this many images per task; default: all.")]
ImageSize = Annotated[int | None, Option(min=1, help="Crop in pixels; default: what the weights were trained with.")]
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1, …; default: CUDA if available.")]
NumWorkers = Annotated[int, Option(min=0, help="Processes that decode images.")]
Seed = Annotated[int, Option(min=0, help="Seed of every random choice.")]
