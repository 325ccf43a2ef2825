"""CUB-200-2011: birds; a task for each order, and for each family of the songbirds."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path

from .lazy import Tasks, expect
from .taxonomy import RANKS, Category, Collection

_ORIGIN = "https://data.caltech.edu/records/20098 (CUB_200_2011.tgz)"
_TABLE = Path(__file__).with_name("cub_taxonomy.csv")
_SPLITS = {"train": "1", "test": "0"}


def cub(
    root: str | os.PathLike[str], *, level: str = "", split: str = "all", min_classes: int = 2, min_images: int = 1
) -> Tasks:
    """Return the tasks of CUB-200-2011: each tells the species of one order or family apart.

    By default 10 orders and 13 families (the paper: 10 and 15, by a taxonomy that it does not give). Metadata: domain,
    rank, taxonomy.

    Args:
        root: Folder with ``images.txt``, or the folder above it.
        level: Rank: ``order``, ``family`` or ``genus``; default: as in the paper, every order but Passeriformes (133 of
            the 200 species), and every family of Passeriformes.
        split: ``train``, ``test`` (of ``train_test_split.txt``) or ``all``.
        min_classes: Taxa with fewer species are left out.
        min_images: Species with fewer images are left out.

    Raises:
        ValueError: If a file is missing, the split is unknown, or no taxon is large enough.

    Source:
        Wah et al., CNS-TR-2011-001; taxonomy: see `bird_taxonomy`; tasks: Achille et al., ICCV 2019, §5.
    """
    where = Path(os.path.abspath(root))
    if not (where / "images.txt").is_file() and (where / "CUB_200_2011").is_dir():
        where /= "CUB_200_2011"
    if split not in ("all", *_SPLITS):
        raise ValueError(f"cub: expected split to be train, test or all, got {split!r}.")
    taxonomy = bird_taxonomy()
    birds = Collection("cub", "CUB-200-2011", _ORIGIN, where, _images(where, split, len(taxonomy)), taxonomy)
    if level:
        return birds.tasks(birds.groups(level, min_classes=min_classes, min_images=min_images))
    chosen = {
        key: numbers
        for rank in ("order", "family")
        for key, numbers in birds.groups(rank, min_classes=min_classes, min_images=min_images).items()
        if (rank == "family") == (taxonomy[numbers[0]].taxa["order"] == "Passeriformes")
    }
    return birds.tasks(chosen)


def _images(root: Path, split: str, classes: int) -> dict[int, list[str]]:
    """Read the lists: class -> its images."""
    lists = ["images.txt", "image_class_labels.txt", *([] if split == "all" else ["train_test_split.txt"])]
    expect("cub", root, lists, _ORIGIN)
    names, labels, *splits = (_pairs(root / name) for name in lists)
    for name, pairs in zip(lists[1:], (labels, *splits), strict=True):
        if pairs.keys() != names.keys():
            raise ValueError(
                f"cub: expected {name} in {root} to list the images of images.txt, got others; "
                "unpack the data set again."
            )
    strangers = sorted(set(labels.values()) - {str(number) for number in range(1, classes + 1)})
    if strangers:
        raise ValueError(
            f"cub: expected classes 1…{classes} in {root / lists[1]}, got {', '.join(strangers[:5])}; "
            "unpack the data set again."
        )
    files: dict[int, list[str]] = defaultdict(list)
    for image, name in names.items():
        if split == "all" or splits[0][image] == _SPLITS[split]:
            files[int(labels[image])].append(f"images/{name}")
    return files


def bird_taxonomy() -> dict[int, Category]:
    """Return class 1…200 of CUB-200-2011 -> its name and its kingdom, phylum, class, order, family and genus.

    Source:
        Wikispecies, as mapped by B. Barz and J. Denzler (WACV 2019); details in the head of ``cub_taxonomy.csv``.
    """
    with _TABLE.open(encoding="utf-8", newline="") as file:
        birds = {}
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            taxa = {"kingdom": "Animalia", "phylum": "Chordata", "class": "Aves"} | row
            birds[int(row["class_id"])] = Category(row["name"].replace("_", " "), {rank: taxa[rank] for rank in RANKS})
        return birds


def _pairs(file: Path) -> dict[str, str]:
    """Read lines of ``number value``."""
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    found = dict(line.partition(" ")[::2] for line in lines if line.strip())
    return {key: value.strip() for key, value in found.items()}
