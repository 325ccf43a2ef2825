"""iNaturalist 2017, 2018, 2019 and 2021: a task for each order, family, class …: to tell its species apart."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..folder import EXTENSIONS
from .lazy import Tasks, expect, read_json
from .taxonomy import RANKS, Category, Collection

_ORIGIN = "https://github.com/visipedia/inat_comp"


def inaturalist(
    year: int,
    root: str | os.PathLike[str],
    *,
    level: str = "order",
    split: str = "train",
    min_classes: int = 2,
    min_pictures: int = 1,
    tasks: str = "",
) -> Tasks:
    """Return the tasks of one year's competition: one for each taxon of a rank, to tell its species apart.

    Args:
        year: 2017, 2018, 2019 or 2021.
        root: Folder of the data set, as published (``train2018.json``, the pictures under the names it gives, and
            ``categories.json`` where that was published apart: it has the ranks) or as torchvision's `INaturalist`
            lays it out (``root/2018``, ``root/2021_train``; of 2018 and 2019 with ``categories.json`` for the ranks).
        level: Rank: ``order``, ``family``, ``class``, …; without ``categories.json`` 2017 to 2019 only tell
            ``supercategory``.
        split: ``train``, ``val`` or, of 2021, ``train_mini``; torchvision's layout of 2017 to 2019 knows no splits.
        min_classes: Taxa with fewer species are left out.
        min_pictures: Species with fewer pictures are left out.
        tasks: JSON file of ``[{"name": taxon, "species_ids": [category, …]}, …]``: these tasks, in this order, such as
            the authors' ``support_files/inat2018/tasks.json``.

    Returns:
        The tasks, classes in the order of the categories' ids. Metadata: domain, rank, taxonomy.

    Raises:
        ValueError: If something is missing, or no taxon is large enough.

    Note:
        Of iNaturalist 2018, 208 "orders" have two or more species; one of them is "NA", species without an order, which
        is none: 207 are left, the paper's number.

    Source:
        Van Horn et al., CVPR 2018 and 2021; tasks: Achille et al., ICCV 2019, §5.
    """
    where = Path(os.path.abspath(root))
    who = f"inat{year}"
    suffix = "" if year == 2021 else str(year)
    annotations = where / f"{split}{suffix}.json"
    folder = where / (f"{year}_{'valid' if split == 'val' else split}" if year == 2021 else str(year))
    if annotations.is_file():
        categories, files = _competition(who, annotations)
        base = where
    elif folder.is_dir():
        categories, files = _torchvision(who, folder, year)
        base = folder
    else:
        expect(who, where, [annotations.name], f"{_ORIGIN}, or with torchvision.datasets.INaturalist")
    published = [file for file in (where / "categories.json", folder / "categories.json") if file.is_file()]
    for extra in _categories(read_json(who, published[0])) if published else ():
        categories[extra[0]] = extra[1]
    collection = Collection(who, f"iNaturalist {year}", base, files, categories)
    first = next((names[0] for names in files.values() if names), None)
    if first is not None:
        expect(who, base, [first], _ORIGIN)
    groups = collection.groups(level, min_classes=min_classes, min_pictures=min_pictures)
    if tasks:
        groups = _listed(who, Path(tasks), groups)
    return collection.tasks({(level, taxon): numbers for taxon, numbers in groups.items()})


def _categories(entries: Iterable[dict[str, Any]]) -> list[tuple[int, Category]]:
    ranks = (*RANKS, "supercategory")
    return [(e["id"], Category(str(e["name"]), {rank: e[rank] for rank in ranks if rank in e})) for e in entries]


def _competition(who: str, file: Path) -> tuple[dict[int, Category], dict[int, list[str]]]:
    """Read the annotations, in COCO's form."""
    content = read_json(who, file)
    missing = [part for part in ("images", "annotations", "categories") if part not in content]
    if missing:
        raise ValueError(f"{who}: expected images, annotations and categories in {file}, got no {', '.join(missing)}.")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    files: dict[int, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        files[annotation["category_id"]].append(names[annotation["image_id"]])
    return dict(_categories(content["categories"])), dict(files)


def _torchvision(who: str, folder: Path, year: int) -> tuple[dict[int, Category], dict[int, list[str]]]:
    """Read the folders: SUPERCATEGORY/CATEGORY until 2019, then one folder a category with its taxonomy in the name."""
    categories: dict[int, Category] = {}
    files: dict[int, list[str]] = {}
    upper = [""] if year == 2021 else _folders(folder)
    for above in upper:
        for name in _folders(folder / above):
            parts = name.split("_")  # 2021: 00000_Animalia_…_Lumbricus_terrestris: number, six ranks, epithet
            if year != 2017 and (not parts[0].isdecimal() or len(parts) != (8 if year == 2021 else 1)):
                layout = "NUMBER_KINGDOM_…_GENUS_EPITHET" if year == 2021 else "SUPERCATEGORY/NUMBER"
                raise ValueError(
                    f"{who}: expected folders {layout} in {folder}, got {os.path.join(above, name)}; "
                    f"lay them out as torchvision does, or get the annotations from {_ORIGIN}."
                )
            number = len(categories) if year == 2017 else int(parts[0])
            if year == 2021:
                categories[number] = Category(" ".join(parts[6:]), dict(zip(RANKS, parts[1:7], strict=True)))
            else:
                categories[number] = Category(name, {"supercategory": above})
            files[number] = [
                os.path.join(above, name, file)
                for file in sorted(os.listdir(folder / above / name))
                if os.path.splitext(file)[1].lower() in EXTENSIONS
            ]
    return categories, files


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _listed(who: str, file: Path, groups: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the groups that a task file lists, in its order, of its species."""
    expect(who, file.parent, [file.name], "https://github.com/awslabs/aws-cv-task2vec (support_files/)")
    listed = {entry["name"]: entry["species_ids"] for entry in read_json(who, file)}
    unknown = [taxon for taxon in listed if taxon in groups and not set(listed[taxon]) & set(groups[taxon])]
    if unknown:
        raise ValueError(
            f"{who}: expected the categories of {file}, got other ones for {', '.join(unknown[:5])}; "
            "take the file of this year."
        )
    return {
        taxon: [number for number in numbers if number in groups[taxon]]
        for taxon, numbers in listed.items()
        if taxon in groups
    }
