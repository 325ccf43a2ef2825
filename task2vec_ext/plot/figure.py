"""What all plots share: the figure, its fonts, the colours of groups, the saved file."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

from .._util.atomic import atomic_path
from .._util.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

# Okabe and Ito's colours, told apart with any colour vision; from the ninth group on hatches or markers differ, too.
GROUP_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
_HATCHES = ("", "///", "...", "xxx")
_MARKERS = ("o", "s", "^", "D")
MOST_GROUPS = len(GROUP_COLOURS) * len(_HATCHES)
_OTHER_COLOUR = "#DDDDDD"

# DejaVu, which comes with matplotlib, has no Chinese, Japanese or Korean; where these are read, one of the fonts below
# is installed.
_FALLBACK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "Hiragino Sans", "PingFang SC", "Yu Gothic",
    "Microsoft YaHei", "Malgun Gothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI",
)  # fmt: skip
_MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from")


class Look(NamedTuple):
    """How a group is drawn in every plot."""

    colour: str
    hatch: str
    marker: str

    def filled(self, edge: float = 0.3) -> dict[str, Any]:
        """Return the style of a patch with an edge of so many points."""
        return {"facecolor": self.colour, "hatch": self.hatch, "edgecolor": "white", "linewidth": edge}


def looks(groups: Sequence[str]) -> tuple[list[str], dict[str, Look]]:
    """Return the group that each task is drawn in, and the look of each group, sorted by name.

    The rarest groups beyond `MOST_GROUPS` are drawn as one, ``N others``, which comes last.
    """
    counts = Counter(groups)
    kept, others = sorted(counts, key=lambda name: (-counts[name], name)), ""
    if len(kept) > MOST_GROUPS:
        kept, others = kept[: MOST_GROUPS - 1], f"{len(kept) - MOST_GROUPS + 1} others"
    every = [Look(colour, *form) for form in zip(_HATCHES, _MARKERS, strict=True) for colour in GROUP_COLOURS]
    styles = dict(zip(sorted(kept), every, strict=False))
    drawn = [group if group in styles else others for group in groups]
    if others:
        styles[others] = Look(_OTHER_COLOUR, "", "o")
    return drawn, styles


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Return `draw` with fallback fonts for other scripts, or an ImportError where matplotlib is missing."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with needs("matplotlib"):
            from matplotlib import rc_context, rcParams
            from matplotlib.font_manager import fontManager
        installed = {font.name for font in fontManager.ttflist}
        families = [*rcParams["font.family"], *(name for name in _FALLBACK_FONTS if name in installed)]
        # Text keeps the fonts it was made with. save_figure warns once about characters that none of them has.
        with rc_context({"font.family": families}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_MISSING_GLYPH.pattern)
            return draw(*args, **kwargs)

    return wrapped


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches, unknown to pyplot, with constrained layout."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot a figure has no canvas to save with until it is given one
    return figure


def whole_figure(ax: Axes) -> Figure:
    """Return the figure of ``ax``, also where ``ax`` is in a subfigure."""
    part: Any = ax.figure
    return part.figure


def check_installed() -> None:
    """Raise ImportError, with what to install, unless matplotlib, scipy and scikit-learn are installed."""
    for module, package in (("matplotlib", "matplotlib"), ("scipy", "scipy"), ("sklearn", "scikit-learn")):
        with needs(package):
            if find_spec(module) is None:
                raise ImportError(module)


@contextmanager
def needs(package: str, extra: str = "plot") -> Iterator[None]:
    """Say what to install where an import in the block fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f'plot: expected {package} to be installed; pip install "task2vec_ext[{extra}]".') from error


def checked_distances(who: str, distances: Any, **per_task: Sequence[Any] | None) -> np.ndarray:
    """Return finite distances as float64 ``[T, T]``, or raise ValueError; each `per_task` is None or has T entries."""
    matrix = np.asarray(torch.as_tensor(distances, dtype=torch.float64, device="cpu").detach())
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"{who}: expected distances of shape [T, T] with T >= 1, got {list(matrix.shape)}.")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{who}: expected finite distances, got NaN or infinity; leave those tasks out.")
    for word, values in per_task.items():
        if values is not None and len(values) != len(matrix):
            raise ValueError(f"{who}: expected {len(matrix)} {word}, one per task, got {len(values)}.")
    return matrix


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """Return ½(D + Dᵀ), shifted so that nothing is negative (d_asym may be), with zeros on the diagonal."""
    mean = (matrix + matrix.T) / 2
    np.fill_diagonal(mean, np.inf)
    mean -= min(mean.min(), 0.0) if len(mean) > 1 else 0.0
    np.fill_diagonal(mean, 0.0)
    return mean


def save_figure(ax: Axes, path: str | os.PathLike[str]) -> None:
    """Write the figure of ``ax`` atomically. The same figure gives the same bytes.

    Args:
        ax: Any axes of the figure.
        path: A ``.png``, ``.svg`` or ``.pdf`` file in a folder that exists.

    Raises:
        ValueError: If the file has another suffix.
        OSError: If the file could not be written; an older one is untouched.
    """
    suffix = check_suffix(path)
    import matplotlib

    undated = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "task2vec"}), _one_warning():
        whole_figure(ax).savefig(temporary, format=suffix, dpi=150, bbox_inches="tight", metadata=undated)


def check_suffix(path: str | os.PathLike[str]) -> str:
    """Return ``png``, ``svg`` or ``pdf``, or raise ValueError."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg", "pdf"):
        raise ValueError(f"save_figure: expected a name that ends in .png, .svg or .pdf, got {path}.")
    return suffix


@contextmanager
def _one_warning() -> Iterator[None]:
    """Warn once about all characters that no font has, instead of once for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    lacking = set()
    for warning in caught:
        if found := _MISSING_GLYPH.search(str(warning.message)):
            lacking.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if lacking:
        signs = "".join(sorted(lacking)[:10])
        message = f"save_figure: expected a font with {signs}, found none; install one, say Noto Sans CJK."
        warnings.warn(message, UserWarning, stacklevel=4)


def label_text(name: str, length: int = 28) -> str:
    """Return a name as plain text for matplotlib: one line, at most `length` characters, no mathematics."""
    return shorten(" ".join(printable(name).split()), length).replace("$", r"\$")


def shorten(name: str, length: int) -> str:
    """Return ``name`` with its middle replaced by … where it is longer than ``length`` characters."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"


def legend(ax: Axes, handles: list[Any], **where: Any) -> None:
    """Draw a legend without a frame."""
    ax.legend(handles=handles, frameon=False, fontsize=9, borderaxespad=0.0, **where)
