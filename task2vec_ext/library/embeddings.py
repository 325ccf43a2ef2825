"""The embeddings of a folder or a library, read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import overload

from .._util.words import check_word
from ..distance import Reference, cross_distances
from ..embedding import Embedding, ProbeInfo
from ..settings import EmbedSettings
from ..words import SymDistanceName
from .library import Library, Neighbour

_KEPT = 64  # embeddings in memory: each has 1 MB of group means at 8,512 filters


class EmbeddingFiles(Sequence[Embedding]):
    """A sequence of embeddings that are read when accessed; the last few stay in memory.

    Args:
        files: The files, with one `Embedding` each.
        library: The library that they belong to, if any: probe, settings and `nearest` are then its own.
    """

    def __init__(self, files: Sequence[Path], library: Library | None = None) -> None:
        """Keep the paths; reads nothing."""
        self.files, self.library = tuple(files), library
        self._load = lru_cache(_KEPT)(_load)

    @overload
    def __getitem__(self, index: int) -> Embedding: ...
    @overload
    def __getitem__(self, index: slice) -> EmbeddingFiles: ...
    def __getitem__(self, index: int | slice) -> Embedding | EmbeddingFiles:
        """Read an embedding, or choose some."""
        if isinstance(index, slice):
            return EmbeddingFiles(self.files[index])
        return self._load(self.files[index])

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.files)

    @property
    def probe(self) -> ProbeInfo:
        """The probe of the first of them."""
        return self[0].probe if self.library is None else self.library.probe

    @property
    def settings(self) -> EmbedSettings:
        """The settings of the first of them."""
        return self[0].settings if self.library is None else self.library.settings

    def names(self) -> list[str]:
        """Return their names, in order."""
        known = {} if self.library is None else {self.library.file(one): one.name for one in self.library.entries()}
        return [known.get(file) or _load(file).name for file in self.files]

    def reference(self) -> Reference:
        """Return the reference of these tasks; that of their library, if they belong to one."""
        return Reference.of(self) if self.library is None else self.library.reference()

    def nearest(
        self,
        task: str | Embedding,
        k: int = 10,
        *,
        distance: SymDistanceName = "sym",
        reference: Reference | None = None,
    ) -> list[Neighbour]:
        """Return at most k tasks nearest to one of these, by its name, or to an embedding, as `Library.nearest` does.

        Raises:
            ValueError: If there is no such task or distance, or the embeddings cannot be compared.
        """
        check_word("nearest", "distance", distance, SymDistanceName)
        if self.library is not None:
            return self.library.nearest(task, k, distance=distance, reference=reference)
        if distance == "library_correlation":
            reference = reference or self.reference()
        known = {one.name: one for one in self.without_groups()}
        if isinstance(task, str):
            if task not in known:
                raise ValueError(f"nearest: expected a task of {', '.join(sorted(known))}; got {task!r}.")
            task = known.pop(task)
        distances = cross_distances(list(known.values()), [task], distance, reference=reference)[:, 0].tolist()
        return sorted(map(Neighbour, known, distances), key=lambda neighbour: neighbour.distance)[:k]

    def without_groups(self) -> list[Embedding]:
        """Read all, without their group means: a thousand of them fit into memory."""
        return [replace(_load(file), group_means=None) for file in self.files]


def _load(file: Path) -> Embedding:
    """Return an embedding with a name: its file's where it has none."""
    embedding = Embedding.load(file)
    return embedding if embedding.name else replace(embedding, name=file.stem)


def load_embeddings(path: str | os.PathLike[str]) -> EmbeddingFiles:
    """Return the embeddings of a library, or of a folder of ``*.safetensors`` files.

    Args:
        path: The library's folder, or the files'.

    Returns:
        A sequence that reads an embedding when it is accessed. Of a library: the tasks that have distances, sorted by
        name; of a folder: all files, sorted by their names.

    Raises:
        ValueError: If there are none.
    """
    folder, library = Path(path).expanduser(), None
    if any((folder / name).is_file() for name in ("library.json", "index.sqlite")):
        library = Library(folder)
        files = [library.file(entry) for entry in library.entries() if entry.norm]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"load_embeddings: expected a library or embeddings (*.safetensors) in {folder}, found none; make them "
            "with task2vec embed."
        )
    return EmbeddingFiles(files, library)
