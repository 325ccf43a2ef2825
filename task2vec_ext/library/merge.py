"""Several libraries made into one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .._util.atomic import atomic_path, check_writable, remove_leftovers
from ..embedding import Embedding
from .folder import Folder, stamp_of
from .library import Library
from .settings import LibrarySettings


def merge_libraries(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> Library:
    """Return a library with the embeddings of several, all made with the same probe and the same settings.

    A task that several have is taken once, if its files are the same, byte for byte. It can be killed at any time: the
    next call continues. Records of failures are not taken: the next build tries those tasks again.

    Args:
        folders: The libraries' folders, which are not changed.
        output: The new library's folder; a library that is there is extended.

    Returns:
        The new library.

    Raises:
        ValueError: If one is no library, has damaged files, was made with other settings than the others, or has
            another embedding of a task. Raised before anything is written.
        TypeError: If `folders` is one path, not a list.
        OSError: If an embedding could not be written.
    """
    if isinstance(folders, (str, os.PathLike)):  # its letters would be libraries
        raise TypeError(f"merge: expected a list of libraries, got {os.fspath(folders)!r}; name two or more.")
    return take("merge", [source_of("merge", Library(folder)) for folder in folders], output)


class Source(NamedTuple):
    """What is taken into a library: the embeddings of one place."""

    place: str
    made_with: LibrarySettings
    files: Mapping[str, Path]  # by the task's name


def take(who: str, sources: Sequence[Source], output: str | os.PathLike[str]) -> Library:
    """Return the library at `output` extended by the embeddings of `sources`, as `merge_libraries` does."""
    files = Folder(Path(output).expanduser())
    taken = [source_of(who, Library(files.root))] if files.made_with() is not None else []
    before = dict(taken[0].files) if taken else {}
    sources = [*taken, *sources]
    if not sources:
        raise ValueError(f"{who}: expected one library or more, got none.")
    first = sources[0]
    _check_settings(who, sources)
    chosen, clashes = dict[str, Path](), list[str]()
    for source in sources:
        for name, path in source.files.items():
            other = chosen.setdefault(name, path)
            if other is not path and not same_file(other, path):
                clashes.append(f"{name!r} ({other} against {path})")
    if clashes:
        raise ValueError(
            f"{who}: expected one embedding a task, got different ones for {', '.join(clashes)}; remove one of each "
            "(task2vec library rm)."
        )
    check_writable(who, files.root)
    if not taken or files.is_old:
        files.create(first.made_with)
    remove_leftovers(files.embeddings)
    for name in sorted(chosen.keys() - before.keys()):
        _copy(who, name, chosen[name], files, first.made_with)
    return Library(files.root)


def _copy(who: str, name: str, path: Path, files: Folder, made_with: LibrarySettings) -> None:
    """Copy an embedding into a library, once every byte of what will be there is known to be sound."""
    with atomic_path(files.embedding_of(name)) as new:
        time = stamp_of(path)[1]
        shutil.copyfile(path, new)
        os.utime(new, ns=(time, time))  # so that the next call need not read it
        try:
            embedding = Embedding.load(new)
        except ValueError:
            raise ValueError(
                f"{who}: expected an embedding in {path}, it is damaged; nothing of it was taken."
            ) from None
        if changes := made_with.changes(embedding):
            raise ValueError(
                f"{who}: expected an embedding made as its library says, {path} was not (there against here): "
                f"{'; '.join(changes)}."
            )
        if embedding.name != name:
            raise ValueError(f"{who}: expected the embedding of {name!r} in {path}, got that of {embedding.name!r}.")
    files.forget_failure(name)


def source_of(who: str, library: Library) -> Source:
    """Return the embeddings of a library; ValueError where files are damaged."""
    entries = library.entries()
    if damaged := [entry.file for entry in entries if entry.state == "damaged"]:
        raise ValueError(
            f"{who}: expected sound files in {library.folder}, got damaged ones: {', '.join(damaged)}; delete them, or "
            "build again (task2vec library verify says what is wrong)."
        )
    files = {entry.name: library.file(entry) for entry in entries if entry.state == "done"}
    return Source(str(library.folder), library.made_with, files)


def _check_settings(who: str, sources: Sequence[Source]) -> None:
    first = sources[0]
    for other in sources[1:]:
        if changes := first.made_with.changes(other.made_with):
            raise ValueError(
                f"{who}: expected libraries made with the same probe and settings, {first.place} and {other.place} "
                f"differ: {'; '.join(changes)}."
            )


def same_file(one: Path, other: Path) -> bool:
    """Return whether both have the same bytes; those of one size and time, as `take` leaves a copy, are not read."""
    try:
        a, b = stamp_of(one), stamp_of(other)
    except FileNotFoundError:
        return False
    return a == b or (a[0] == b[0] and one.read_bytes() == other.read_bytes())
