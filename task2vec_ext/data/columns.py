"""Tables in memory as pairs of (image, label): data frames, and data sets of Hugging Face's `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from .labels import are_names, number_names


def is_frame(source: Any) -> bool:
    """Return whether a source is a data frame of pandas, polars or pyarrow."""
    return _package(source) in ("pandas", "polars", "pyarrow") and bool(_names(source))


def is_rows(source: Any) -> bool:
    """Return whether a source is a data set of Hugging Face's `datasets` that knows its columns and length."""
    return _package(source) == "datasets" and hasattr(source, "features") and hasattr(source, "select_columns")


def pairs_of_frame(frame: Any) -> list[tuple[Any, Any]]:
    """Return the rows of a data frame as pairs.

    Raises:
        ValueError: If it has neither the columns ``path`` (or ``image``) and ``label``, nor two columns alone.
    """
    names = _names(frame)
    images = [name for name in names if name in ("path", "image")]
    if len(images) == 1 and names.count("label") == 1:
        chosen: Sequence[str] = (images[0], "label")
    elif len(set(names)) == len(names) == 2:
        chosen = names
    else:
        raise ValueError(
            f"as_task: expected a data frame with the columns path (or image) and label, or with two columns, got "
            f"{', '.join(map(str, names))}; choose two: frame[[PATHS, LABELS]]."
        )
    columns = [frame[name] for name in chosen]
    return list(zip(*(c.to_pylist() if hasattr(c, "to_pylist") else c.to_list() for c in columns), strict=True))


def rows_of(source: Any) -> Rows:
    """Return a data set of `datasets` as pairs; its columns are found by their types and names.

    Raises:
        TypeError: If it streams, or a function of its own makes its items.
        ValueError: If it has not one column of images and one of labels.
    """
    if not hasattr(source, "__len__"):
        raise TypeError(
            f"as_task: expected a map-style data set, got {type(source).__name__} of datasets, which streams; load it "
            "with streaming=False, or take some: datasets.Dataset.from_list(list(data_set.take(1000)))."
        )
    if source.format["type"] == "custom":
        raise TypeError(
            "as_task: expected a data set without a transform of its own (set_transform), got one; pass "
            "data_set.with_format(None)."
        )
    image, label = image_and_label(source.features)
    if not image or not label:
        got = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in source.features.items())
        raise ValueError(
            f"as_task: expected a column of images and one of labels, got {got}; choose two: "
            "data_set.select_columns([IMAGES, LABELS])."
        )
    return Rows(source, image, label)


def image_and_label(features: Any, image: str = "", label: str = "") -> tuple[str, str]:
    """Return the columns of images and labels, "" where it is not clear which: the given, or the only ones that fit."""
    import datasets

    def first(candidates: Sequence[str]) -> str:
        return candidates[0] if len(candidates) == 1 else ""

    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    image = image or ("image" if "image" in images else first(images))
    others = [key for key in features if key != image]
    classes = [key for key in others if isinstance(features[key], datasets.ClassLabel)]
    named = [key for key in others if key.lower() in ("label", "labels", "class", "target")]
    label = label or first(classes) or first(named) or ("label" if "label" in classes else first(others))
    return image, label


class Rows(Dataset[Any]):
    """Rows of a data set of `datasets` as pairs of (image, label); labels that are text are numbered.

    Args:
        rows: The data set.
        image: Its column of images.
        label: Its column of labels.
    """

    def __init__(self, rows: Any, image: str, label: str) -> None:
        """Read the labels; no image is decoded."""
        self.rows, self.image, self.label = rows.select_columns([image, label]), image, label
        self.targets = self.rows[label][:]
        self.classes = getattr(rows.features[label], "names", None)
        self._numbered = are_names(self.targets)
        if self._numbered:
            labels, self.classes = number_names(self.targets, who="as_task", where="row")
            self.targets = labels.tolist()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return an image and its label."""
        row = self.rows[int(index)]
        return row[self.image], self.targets[index] if self._numbered else row[self.label]

    def digest(self) -> str:
        """Return the fingerprint that `datasets` keeps of the rows' contents and how they came about."""
        return f"datasets {self.rows._fingerprint}"


def _package(source: Any) -> str:
    return type(source).__module__.partition(".")[0]


def _names(frame: Any) -> list[Any]:
    names = getattr(frame, "column_names", None)
    return list(getattr(frame, "columns", ()) if names is None else names)
