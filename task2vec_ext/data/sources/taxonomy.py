"""Tasks from a taxonomy: each tells the species of one order, family, class, … apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..task import Task
from .lazy import Tasks, expect, files_task

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
_UNPLACED = "NA"  # iNaturalist's entry for a species without order or family: not a taxon

Groups = Mapping[tuple[str, str], Sequence[int]]  # (rank, taxon) -> categories


@dataclass(frozen=True)
class Category:
    """What a label of a data set means: its name, such as the species, and rank -> taxon where that is known."""

    name: str
    taxa: Mapping[str, str]


@dataclass(frozen=True)
class Collection:
    """A data set of images whose categories have a place in a taxonomy."""

    who: str  # the source, in names and messages: inat2018
    domain: str  # the data set's name, in the tasks' metadata
    origin: str  # where to get it, for messages
    root: Path  # the images' folder, absolute
    files: Mapping[int, Sequence[str]]  # category -> its images, relative to the root
    categories: Mapping[int, Category]

    def groups(self, rank: str, *, min_classes: int, min_images: int) -> Groups:
        """Return the categories of each taxon of a rank such as ``order``, in ascending order.

        Left out are categories with fewer than `min_images` images or no such taxon ("NA"), and then taxa with fewer
        than `min_classes` categories. Taxa that share a name get the taxon above in parentheses.
        """
        ranks = {known for category in self.categories.values() for known in category.taxa}
        if rank not in ranks:
            names = ", ".join(sorted(ranks)) or "none"
            raise ValueError(f"{self.who}: expected level to be a rank of its categories ({names}), got {rank!r}.")
        by_lineage: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number in sorted(self.files):
            taxa = self.categories[number].taxa
            if len(self.files[number]) >= max(1, min_images) and taxa.get(rank, _UNPLACED) != _UNPLACED:
                by_lineage[tuple(_lineage(taxa, rank).values())].append(number)
        kept = {lineage: numbers for lineage, numbers in by_lineage.items() if len(numbers) >= min_classes}
        taken = [lineage[-1] for lineage in kept]
        return {
            (rank, lineage[-1] if taken.count(lineage[-1]) == 1 else f"{lineage[-1]} ({lineage[-2]})"): numbers
            for lineage, numbers in kept.items()
        }

    def tasks(self, groups: Groups) -> Tasks:
        """Return one task for each group, named ``inat2018 order Odonata``; its categories are the classes 0…C−1."""
        chosen = list(groups.items())
        if not chosen:
            raise ValueError(
                f"{self.who}: expected taxa with enough categories of enough images in {self.root}, got none; lower "
                "min_classes or min_images."
            )
        names = [f"{self.who} {rank} {taxon}" for rank, taxon in groups]
        expect(self.who, self.root, [self.files[chosen[0][1][0]][0]], self.origin)
        return Tasks(names, lambda i: self._task(names[i], chosen[i][0][0], chosen[i][1]))

    def _task(self, name: str, rank: str, numbers: Sequence[int]) -> Task:
        sizes = torch.tensor([len(self.files[number]) for number in numbers])
        lineage = _lineage(self.categories[numbers[0]].taxa, rank)
        return files_task(
            self.root,
            [file for number in numbers for file in self.files[number]],
            torch.arange(len(numbers)).repeat_interleave(sizes),
            name=name,
            classes=[self.categories[number].name for number in numbers],
            metadata={"domain": self.domain, "rank": rank, "taxonomy": lineage},
        )


def _lineage(taxa: Mapping[str, str], rank: str) -> dict[str, str]:
    """The known taxa from the kingdom down to the rank."""
    above = RANKS[: RANKS.index(rank)] if rank in RANKS else ()
    return {known: taxa[known] for known in (*above, rank) if known in taxa}
