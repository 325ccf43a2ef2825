"""Options that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..words import DistanceName, OnError, SymDistanceName

if TYPE_CHECKING:
    from ..distance import Reference
    from ..library import EmbeddingFiles

Specs = Annotated[
    list[str],
    Argument(metavar="SPEC...", help="Folders of class folders, or SOURCE:WHAT, e.g. cub:DIR (docs/data_sources.md)."),
]
Folder = Annotated[Path, Argument(metavar="DIR", help="A library, or a folder of embeddings (.safetensors).")]
Alpha = Annotated[float, Option(help="α of asym and asym_scaled: weight of the distance to the trivial task.")]
SymDistance = Annotated[
    SymDistanceName,
    Option(
        help="sym: the paper's d_sym; sym_scaled: of embeddings scaled to unit mean; library_correlation: of their "
        "differences from the library's mean."
    ),
]
ReferenceFile = Annotated[
    Path | None,
    Option("--reference", metavar="FILE", help="Reference of library_correlation; default: that of the tasks in DIR."),
]
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
Ray = Annotated[
    str | None,
    Option(metavar="ADDRESS", help="Share the work on a Ray cluster; auto: the one that runs here, else this machine."),
]
Seed = Annotated[int, Option(min=0, help="Seed of every random choice.")]
SkipUnreadable = Annotated[
    bool, Option("--skip-unreadable", help="Leave out images that cannot be read, and count them.")
]


# What a message calls an argument in Python, and then on the command line.
_BOTH = re.compile(r"\S+ \(on the command line ([^)]+)\)")
_HOME = re.compile(r"(^|[=:])~(?=$|/)")
_kept: list[str] = []


def distance_label(distance: DistanceName, alpha: float) -> str:
    """Return what a plot calls a distance."""
    return f"d_{distance}, α = {alpha:g}" if distance in ("asym", "asym_scaled") else f"d_{distance}"


def reference_for(distance: DistanceName, file: Path | None, known: EmbeddingFiles) -> Reference | None:
    """Return the reference that a distance needs: that of the file, or else of what is known."""
    from ..distance import Reference

    if file is not None:
        return Reference.load(file)
    return known.reference() if distance == "library_correlation" else None


def on_error(skip_unreadable: bool) -> OnError:
    """Return the functions' argument."""
    return "skip" if skip_unreadable else "raise"


def as_options(message: str) -> str:
    """Return a message without the arguments of Python that it names beside options of the command line."""
    return _BOTH.sub(r"\1", message)


def at_home(argument: str) -> str:
    """Return an argument with the home folder for a ``~`` that no shell replaces, as in ``--output=~/x``."""
    return _HOME.sub(lambda found: found[1] + os.path.expanduser("~"), argument)


@contextmanager
def kept(what: str) -> Iterator[None]:
    """Let `interrupted` say what is kept where Ctrl-C ends the block."""
    _kept.append(what)
    yield
    _kept.pop()  # not where the block ends early


def interrupted() -> str:
    """Return what is kept after Ctrl-C."""
    return _kept[-1] if _kept else "nothing was written"
