"""The embeddings of a folder or a library, read when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

from ..embedding import Embedding

_KEPT = 64
"""Embeddings in memory: one has 1 MB of group means at 8,512 filters."""


class EmbeddingFiles(Sequence[Embedding]):
    """Embeddings that are read when asked for; the last few stay in memory.

    Args:
        files: One `Embedding` each.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Keep the paths; reads nothing."""
        self.files = tuple(files)
        self._load = lru_cache(_KEPT)(Embedding.load)

    @overload
    def __getitem__(self, index: int) -> Embedding: ...

    @overload
    def __getitem__(self, index: slice) -> EmbeddingFiles: ...

    def __getitem__(self, index: int | slice) -> Embedding | EmbeddingFiles:
        """Read an embedding, or choose some."""
        if isinstance(index, slice):
            return EmbeddingFiles(self.files[index])
        return named(self._load(self.files[index]), self.files[index])

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.files)

    def without_groups(self) -> list[Embedding]:
        """Read all, without their group means: a thousand of them fit into memory."""
        return [named(without_groups(Embedding.load(file)), file) for file in self.files]


def without_groups(embedding: Embedding) -> Embedding:
    """Return an embedding that has forgotten how sure it is."""
    return dataclasses.replace(embedding, group_means=None)


def named(embedding: Embedding, file: Path) -> Embedding:
    """Return an embedding with a name: its file's where it has none."""
    return embedding if embedding.name else dataclasses.replace(embedding, name=file.stem)


def embeddings_in(who: str, folder: Path) -> EmbeddingFiles:
    """Return the embeddings of a library, or of a folder of ``*.safetensors`` files.

    Args:
        who: The command, for messages.
        folder: The library's, or the files'.

    Returns:
        Those of a library's tasks that have distances, in the order in which they came; all of a folder's, by name.

    Raises:
        ValueError: If there are none.
    """
    if (folder / "index.sqlite").is_file():
        from . import Library

        library = Library(folder)
        comparable = set(library.index.comparable())
        files = [library.file(entry) for entry in library.entries() if entry.id in comparable]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{who}: expected a library or embeddings (*.safetensors) in {folder}, found none.")
    return EmbeddingFiles(files)
