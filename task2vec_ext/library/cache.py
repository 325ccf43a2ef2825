"""The caches of a library: its embeddings' entries and F in a few files, which are read block by block.

A segment ``cache/rows-….safetensors`` holds the entries and the rows of some embeddings, and is never changed. Whoever
finds embeddings that are in no segment writes another; where two processes do so at once, both are sound. What counts
is name, size and time of the embedding's file: nothing in a segment is used of a file that is not as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._util.atomic import atomic_path
from ..embedding import Embedding
from ..embedding.file import to_json
from .entry import Entry
from .folder import Folder, Stamp
from .nearest import SKETCH, sketch
from .settings import LibrarySettings

_FORMAT = "1"

_BYTES = 64 << 20
"""Of the rows of a segment: reading one takes tens of milliseconds, and a million tasks are some hundred files."""

_MOST_SMALL = 8
"""Segments that are less than half full, before they are joined."""


class Segment:
    """Some embeddings' entries, and their rows: in a file, or in memory where the folder cannot be written to."""

    def __init__(self, path: Path, rows: dict[str, Tensor] | None, entries: list[Entry], stamps: list[Stamp]) -> None:
        """Keep them; `rows` is None where they are in the file."""
        self.path, self._rows, self.entries, self.stamps = path, rows, entries, stamps

    @classmethod
    def load(cls, path: Path, made_with: LibrarySettings) -> Segment:
        """Return the segment in a file, its rows not read yet.

        Raises:
            ValueError: If the file is no segment of embeddings that are made with these settings, or damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                header, text = file.metadata(), bytes(file.get_tensor("entries").numpy())
                shapes = {name: file.get_slice(name).get_shape() for name in ("fisher", "sketch")}
                types = {name: file.get_slice(name).get_dtype() for name in ("fisher", "sketch")}
            if header != _header(made_with, text):
                raise ValueError("another format, or other settings")
            known = json.loads(text)
            wanted = {"fisher": [len(known), made_with.filters], "sketch": [len(known), SKETCH]}
            if shapes != wanted or set(types.values()) != {"F32"}:
                raise ValueError("other shapes")
            entries = [Entry(*row[2:]) for row in known]
            return cls(path, None, entries, [Stamp(*row[:2]) for row in known])
        except (SafetensorError, ValueError, TypeError, OSError) as error:
            raise ValueError(f"library: expected rows of this library in {path}, got: {error}.") from error

    def save(self, made_with: LibrarySettings) -> Segment:
        """Return the segment written to its file, or itself where that cannot be."""
        assert self._rows is not None
        text = json.dumps([(*stamp, *entry) for stamp, entry in zip(self.stamps, self.entries, strict=True)]).encode()
        tensors = self._rows | {"entries": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        try:
            self.path.parent.mkdir(exist_ok=True)
            with atomic_path(self.path) as new:
                safetensors.torch.save_file(tensors, new, _header(made_with, text))
        except OSError:  # a read-only folder, a full disk
            return self
        return Segment(self.path, None, self.entries, self.stamps)

    def rows(self, what: str, numbers: Tensor) -> Tensor:
        """Return some rows of ``"fisher"`` or ``"sketch"``, ``[n, …]`` float32; FileNotFoundError if it was removed."""
        if self._rows is not None:
            return self._rows[what][numbers]
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(what)[numbers]  # a copy: the mapping ends here


def _header(made_with: LibrarySettings, entries: bytes) -> dict[str, str]:
    settings = hashlib.sha256(to_json(made_with.to_json()).encode()).hexdigest()
    return {"format": _FORMAT, "settings": settings, "sha256": hashlib.sha256(entries).hexdigest()}


class Cache:
    """The segments of a library, kept in step with its embeddings."""

    def __init__(self, folder: Folder, made_with: LibrarySettings) -> None:
        """Keep folder and settings; reads nothing."""
        self._folder, self._made_with = folder, made_with
        self._segments: dict[Path, Segment] = {}
        self._most = max(1, _BYTES // (4 * made_with.filters))
        self._writable = True

    def look(self) -> tuple[list[Segment], list[list[int]], list[Entry]]:
        """Return segments, which rows of each are those of files as they are now, and the damaged files."""
        stamps = self._folder.stamps()
        self._load_segments()
        live = self._live(stamps)
        known = {segment.entries[row].file for segment, rows in live.items() for row in rows}
        damaged: list[Entry] = []
        new = [file for file in sorted(stamps) if f"embeddings/{file}" not in known]
        for start in range(0, len(new), self._most):
            self._add(new[start : start + self._most], stamps, damaged)
        if new:
            live = self._live(stamps)
        small = {segment: rows for segment, rows in live.items() if len(rows) < self._most / 2}
        if len(small) > _MOST_SMALL and self._writable:
            self._join(small)
            live = self._live(stamps)
        return list(live), list(live.values()), damaged

    def _load_segments(self) -> None:
        """Read the segments that are new; forget those that are gone."""
        files = set((self._folder.cache).glob("rows-*.safetensors"))
        kept = {path: one for path, one in self._segments.items() if path in files or one._rows is not None}
        for path in files - set(kept):
            with contextlib.suppress(ValueError):  # damaged, or of another version: another one is made
                kept[path] = Segment.load(path, self._made_with)
        self._segments = kept

    def _live(self, stamps: Mapping[str, Stamp]) -> dict[Segment, list[int]]:
        """Return which rows of each segment are of files as they are now, each file once."""
        left = {f"embeddings/{file}": stamp for file, stamp in stamps.items()}
        live: dict[Segment, list[int]] = {}
        for segment in self._segments.values():
            pairs = zip(segment.entries, segment.stamps, strict=True)
            live[segment] = [row for row, (entry, stamp) in enumerate(pairs) if left.get(entry.file) == stamp]
            for row in live[segment]:
                del left[segment.entries[row].file]
        return live

    def _add(self, files: Sequence[str], stamps: Mapping[str, Stamp], damaged: list[Entry]) -> None:
        """Read embeddings, every byte of them, and make a segment of those that are sound."""
        entries, rows = [], []
        for file in files:
            found = self._read(file)
            if isinstance(found, Entry):
                damaged.append(found)
            elif found is not None:
                entries.append(Entry.of(found, f"embeddings/{file}"))
                rows.append(found.fisher)
        if entries:
            fisher = torch.stack(rows)
            of_entries = [stamps[Path(one.file).name] for one in entries]
            self._keep(Segment(self._path(), {"fisher": fisher.float(), "sketch": sketch(fisher)}, entries, of_entries))

    def _read(self, file: str) -> Embedding | Entry | None:
        """Return an embedding, the entry of a file that cannot be used, or None if the file was removed."""
        place = f"embeddings/{file}"
        try:
            embedding = Embedding.load(self._folder.root / place)
        except (ValueError, TypeError, KeyError, OSError) as error:
            if not (self._folder.root / place).exists():
                return None
            return Entry(file, place, "damaged", error=str(error))
        if changes := self._made_with.changes(embedding):
            why = f"made with other settings than the library (there against here): {'; '.join(changes)}"
            return Entry(file, place, "damaged", error=why)
        return embedding

    def _path(self) -> Path:
        return self._folder.cache / f"rows-{secrets.token_hex(8)}.safetensors"

    def _keep(self, made: Segment) -> None:
        self._segments[made.path] = saved = made.save(self._made_with)
        self._writable = saved is not made

    def _join(self, small: Mapping[Segment, list[int]]) -> None:
        """Replace small segments by full ones."""
        with contextlib.suppress(FileNotFoundError):  # somebody else does it
            for group in _grouped(small, self._most):
                entries = [segment.entries[row] for segment, rows in group for row in rows]
                stamps = [segment.stamps[row] for segment, rows in group for row in rows]
                parts = {
                    what: torch.cat([segment.rows(what, torch.tensor(rows)) for segment, rows in group])
                    for what in ("fisher", "sketch")
                }
                self._keep(Segment(self._path(), parts, entries, stamps))
            for segment in small:
                del self._segments[segment.path]
                with contextlib.suppress(OSError):
                    segment.path.unlink(missing_ok=True)


def _grouped(small: Mapping[Segment, list[int]], most: int) -> Iterator[list[tuple[Segment, list[int]]]]:
    """Yield segments with at most so many rows together."""
    group: list[tuple[Segment, list[int]]] = []
    for segment, rows in small.items():
        if group and sum(len(rows) for _, rows in group) + len(rows) > most:
            yield group
            group = []
        if rows:
            group.append((segment, rows))
    if group:
        yield group
