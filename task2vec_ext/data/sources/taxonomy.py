"""Tasks from a taxonomy: to tell the species of one order, family, class … apart."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..folder import Files
from ..task import Task
from .lazy import Tasks, expect

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
_UNPLACED = "NA"  # what iNaturalist writes where a species has no order or family: not a taxon


Groups = Mapping[tuple[str, str], Sequence[int]]
"""(rank, taxon) -> categories."""


@dataclass(frozen=True)
class Category:
    """What one label means.

    Args:
        name: The species, or what else the data set tells apart.
        taxa: Rank -> name, as far as they are known.
    """

    name: str
    taxa: Mapping[str, str]


@dataclass(frozen=True)
class Collection:
    """A data set of images of placed categories.

    Args:
        who: The source, in names and messages: ``inat2018``.
        domain: Of every task's metadata.
        origin: Where to get it.
        root: The images' folder, absolute.
        files: Category -> its images, relative to `root`.
        categories: Category -> what it is.
    """

    who: str
    domain: str
    origin: str
    root: Path
    files: Mapping[int, Sequence[str]]
    categories: Mapping[int, Category]

    def groups(self, rank: str, *, min_classes: int, min_images: int) -> Groups:
        """Return the categories of each taxon of a rank.

        Args:
            rank: Such as ``order``.
            min_classes: Taxa with fewer categories are left out.
            min_images: Categories with fewer images are left out.

        Returns:
            The groups, and in each the categories, in the order of the categories' numbers. Of taxa that share a name,
            each has the one above it in parentheses. Categories that have no such taxon ("NA") are in none.

        Raises:
            ValueError: If no category has this rank.
        """
        ranks = {known for category in self.categories.values() for known in category.taxa}
        if rank not in ranks:
            names = ", ".join(sorted(ranks)) or "none"
            raise ValueError(f"{self.who}: expected level to be a rank of its categories ({names}), got {rank!r}.")
        by_place: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number in sorted(self.files):
            if len(self.files[number]) >= max(1, min_images):
                taxa = self.categories[number].taxa
                if taxa.get(rank, _UNPLACED) != _UNPLACED:
                    by_place[_place(taxa, rank)].append(number)
        kept = {place: numbers for place, numbers in by_place.items() if len(numbers) >= min_classes}
        taken = [place[-1] for place in kept]
        return {
            (rank, place[-1] if taken.count(place[-1]) == 1 else f"{place[-1]} ({place[-2]})"): numbers
            for place, numbers in kept.items()
        }

    def tasks(self, groups: Groups) -> Tasks:
        """Return one task for each group: to tell its categories apart.

        Args:
            groups: (rank, taxon) -> categories, the classes 0…C−1 in this order.

        Returns:
            The tasks, named ``inat2018 order Odonata``.

        Raises:
            ValueError: If there are none, or the first image is not where it should be.
        """
        names = [f"{self.who} {rank} {taxon}" for rank, taxon in groups]
        chosen = list(groups.items())
        if not chosen:
            raise ValueError(
                f"{self.who}: expected taxa with enough categories of enough images in {self.root}, got none; lower "
                "min_classes or min_images."
            )
        expect(self.who, self.root, [self.files[chosen[0][1][0]][0]], self.origin)
        return Tasks(names, lambda i: self._task(names[i], chosen[i][0][0], chosen[i][1]))

    def _task(self, name: str, rank: str, numbers: Sequence[int]) -> Task:
        files = [file for number in numbers for file in self.files[number]]
        labels = torch.arange(len(numbers)).repeat_interleave(torch.tensor([len(self.files[n]) for n in numbers]))
        taxa = self.categories[numbers[0]].taxa
        lineage = (
            {r: taxa[r] for r in RANKS[: RANKS.index(rank) + 1] if r in taxa} if rank in RANKS else {rank: taxa[rank]}
        )
        return Task(
            Files(tuple(os.path.join(self.root, file) for file in files), tuple(labels.tolist()), tuple(files)),
            name=name,
            classes=tuple(self.categories[number].name for number in numbers),
            labels=labels,
            metadata={"domain": self.domain, "rank": rank, "taxonomy": lineage},
        )


def _place(taxa: Mapping[str, str], rank: str) -> tuple[str, ...]:
    """The taxa from the top down to the rank: what tells two of one name apart."""
    above = RANKS[: RANKS.index(rank)] if rank in RANKS else ()
    return (*(taxa[r] for r in above if r in taxa), taxa[rank])
