"""iNaturalist 2017, 2018, 2019 and 2021: a task for each order, family, class …: to tell its species apart."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..folder import EXTENSIONS
from .lazy import Tasks, expect, read_json
from .taxonomy import RANKS, Category, Collection, Groups

_ORIGIN = "https://github.com/visipedia/inat_comp"


def inaturalist(
    year: int,
    root: str | os.PathLike[str],
    *,
    level: str = "order",
    split: str = "train",
    min_classes: int = 2,
    min_images: int = 1,
    tasks: str = "",
) -> Tasks:
    """Return the tasks of one year's competition: one for each taxon of a rank, to tell its species apart.

    Args:
        year: 2017, 2018, 2019 or 2021.
        root: Folder of the data set, as published (``train2018.json``, the images under the names it gives, and
            ``categories.json`` where that was published apart: it has the ranks) or as torchvision's `INaturalist`
            lays it out (``root/2018``, ``root/2021_train``; of 2018 and 2019 with ``categories.json`` for the ranks).
        level: Rank: ``order``, ``family``, ``class``, …; without ``categories.json`` 2017 to 2019 only tell
            ``supercategory``.
        split: ``train``, ``val`` or, of 2021, ``train_mini``; ``all`` in torchvision's layout of 2017 to 2019.
        min_classes: Taxa with fewer species are left out.
        min_images: Species with fewer images are left out.
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
        if year != 2021 and split != "all":
            raise ValueError(
                f"{who}: expected split=all for torchvision's layout in {folder}, which does not tell train from val, "
                f"got {split!r}; pass it, or put {annotations.name} ({_ORIGIN}) into {where}."
            )
        categories, files = _torchvision(who, folder, year)
        base = folder
    else:
        expect(who, where, [annotations.name], f"{_ORIGIN}, or with torchvision.datasets.INaturalist")
    published = [file for file in (where / "categories.json", folder / "categories.json") if file.is_file()]
    if published:
        categories.update(_categories(read_json(who, published[0])))
    collection = Collection(who, f"iNaturalist {year}", _ORIGIN, base, files, categories)
    groups = collection.groups(level, min_classes=min_classes, min_images=min_images)
    return collection.tasks(_listed(who, Path(tasks), level, groups) if tasks else groups)


def _categories(entries: Iterable[dict[str, Any]]) -> list[tuple[int, Category]]:
    ranks = (*RANKS, "supercategory")
    return [(e["id"], Category(str(e["name"]), {rank: e[rank] for rank in ranks if e.get(rank)})) for e in entries]


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


def _listed(who: str, file: Path, level: str, groups: Groups) -> Groups:
    """Return the groups that a task file lists, in its order, of its species."""
    expect(who, file.parent, [file.name], "https://github.com/awslabs/aws-cv-task2vec (support_files/)")
    listed = {(level, entry["name"]): entry["species_ids"] for entry in read_json(who, file)}
    known = {key: [number for number in listed[key] if number in groups[key]] for key in listed if key in groups}
    foreign = [taxon for (_, taxon), numbers in known.items() if not numbers]
    if foreign:
        raise ValueError(
            f"{who}: expected the categories of {file}, got other ones for {', '.join(foreign[:5])}; "
            "take the file of this year."
        )
    return known
