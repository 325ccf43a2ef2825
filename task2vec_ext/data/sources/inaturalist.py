"""iNaturalist 2017, 2018, 2019 and 2021: a task for each order, family, class, …, which tells its species apart."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..folder import is_image
from .lazy import Tasks, expect, read_json, records
from .taxonomy import RANKS, Category, Collection, Groups

_ORIGIN = "https://github.com/visipedia/inat_comp"

_Index = tuple[dict[int, Category], dict[int, list[str]]]  # category -> what it is, category -> its images


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
    """Return the tasks of one year's competition: each tells the species of one taxon apart, in the order of their ids.

    Metadata: domain, rank, taxonomy.

    Args:
        year: 2017, 2018, 2019 or 2021.
        root: Folder of the data set: as published (``train2018.json``, the images under the names in it, and
            ``categories.json`` with the ranks where that is a file of its own), or as torchvision's `INaturalist` lays
            it out (``root/2018``, ``root/2021_train``; 2018 and 2019 need ``categories.json`` for the ranks).
        level: Rank: ``order``, ``family``, ``class``, …; without ``categories.json``, 2017 to 2019 have only
            ``supercategory``.
        split: ``train``, ``val`` or, of 2021, ``train_mini``; ``all`` for torchvision's layout of 2017 to 2019.
        min_classes: Taxa with fewer species are left out.
        min_images: Species with fewer images are left out.
        tasks: JSON file of ``[{"name": taxon, "species_ids": [category, …]}, …]``: the tasks in this order, as in the
            authors' ``support_files/inat2018/tasks.json``.

    Raises:
        ValueError: If a file is missing or damaged, or no taxon is large enough.

    Note:
        In iNaturalist 2018, 208 "orders" have two or more species. One of them is "NA", the species without an order;
        it is left out, which gives the 207 tasks of the paper.

    Source:
        Van Horn et al., CVPR 2018 and 2021; tasks: Achille et al., ICCV 2019, §5.
    """
    who, where = f"inat{year}", Path(os.path.abspath(root))
    annotations = where / f"{split}{'' if year == 2021 else year}.json"
    folder = where / (f"{year}_{'valid' if split == 'val' else split}" if year == 2021 else str(year))
    if annotations.is_file():
        base, (categories, files) = where, _competition(who, annotations)
    elif folder.is_dir():
        if year != 2021 and split != "all":
            raise ValueError(
                f"{who}: expected split=all for torchvision's layout in {folder}, which does not tell train from val, "
                f"got {split!r}; pass it, or put {annotations.name} ({_ORIGIN}) into {where}."
            )
        base, (categories, files) = folder, _torchvision(who, folder, year)
    else:
        expect(who, where, [annotations.name], f"{_ORIGIN}, or with torchvision.datasets.INaturalist")
    published = [file for file in (where / "categories.json", folder / "categories.json") if file.is_file()]
    if published:
        categories.update(_categories(who, published[0], read_json(who, published[0])))
    collection = Collection(who, f"iNaturalist {year}", _ORIGIN, base, files, categories)
    groups = collection.groups(level, min_classes=min_classes, min_images=min_images)
    return collection.tasks(_listed(who, Path(tasks), level, groups) if tasks else groups)


def _categories(who: str, file: Path, entries: list[dict[str, Any]]) -> dict[int, Category]:
    ranks = (*RANKS, "supercategory")
    pairs = zip(records(who, file, "categories", entries, "id", "name"), entries, strict=True)
    return {number: Category(str(name), {r: str(e[r]) for r in ranks if e.get(r)}) for (number, name), e in pairs}


def _competition(who: str, file: Path) -> _Index:
    """Read the published annotations, which are in COCO's format."""
    content = read_json(who, file)
    parts = ("images", "annotations", "categories")
    missing = [part for part in parts if not isinstance(content, dict) or part not in content]
    if missing:
        raise ValueError(f"{who}: expected images, annotations and categories in {file}, got no {', '.join(missing)}.")
    categories = _categories(who, file, content["categories"])
    names = dict(records(who, file, "images", content["images"], "id", "file_name"))
    files: dict[int, list[str]] = defaultdict(list)
    for image, category in records(who, file, "annotations", content["annotations"], "image_id", "category_id"):
        for kind, number, known in (("image", image, names), ("category", category, categories)):
            if number not in known:
                raise ValueError(
                    f"{who}: expected annotations of the {len(known):,} {kind} ids that {file} lists, got {kind} "
                    f"{number!r}; download or unpack it again."
                )
        files[category].append(names[image])
    return categories, dict(files)


def _torchvision(who: str, folder: Path, year: int) -> _Index:
    """Read the folders of 2017 (``SUPERCATEGORY/NAME``), 2018 and 2019 (``SUPERCATEGORY/NUMBER``), or 2021.

    The last are such as ``00000_Animalia_…_Lumbricus_terrestris``: number, six ranks, epithet.
    """
    categories: dict[int, Category] = {}
    files: dict[int, list[str]] = {}
    names = _folders(folder)
    if year != 2021:
        names = [os.path.join(above, name) for above in names for name in _folders(folder / above)]
    for name in names:
        above, own = os.path.split(name)
        number, *taxa = own.split("_")
        if year == 2021:
            layout, fits = "NUMBER_KINGDOM_…_GENUS_EPITHET", number.isdecimal() and len(taxa) == len(RANKS) + 1
            category = Category(" ".join(taxa[-2:]), dict(zip(RANKS, taxa, strict=False)))
        else:
            layout, fits = "SUPERCATEGORY/NUMBER", year == 2017 or own.isdecimal()
            category = Category(own, {"supercategory": above})
        if not fits:
            raise ValueError(
                f"{who}: expected folders {layout} in {folder}, got {name}; lay them out as torchvision does, or get "
                f"the annotations from {_ORIGIN}."
            )
        key = len(categories) if year == 2017 else int(number)
        categories[key] = category
        files[key] = [os.path.join(name, file) for file in sorted(os.listdir(folder / name)) if is_image(file)]
    return categories, files


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _listed(who: str, file: Path, level: str, groups: Groups) -> Groups:
    """Return the groups that a task file lists, in its order and with its species."""
    expect(who, file.parent, [file.name], "https://github.com/awslabs/aws-cv-task2vec (support_files/)")
    entries = records(who, file, "tasks", read_json(who, file), "name", "species_ids")
    listed = {(level, name): species for name, species in entries}
    known = {key: [number for number in listed[key] if number in groups[key]] for key in listed if key in groups}
    foreign = [taxon for (_, taxon), numbers in known.items() if not numbers]
    if foreign:
        raise ValueError(
            f"{who}: expected the categories of {file}, got other ones for {', '.join(foreign[:5])}; "
            "take the file of this year."
        )
    return known
