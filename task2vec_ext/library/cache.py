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

_FORMAT = "2"

Live = dict["Segment", list[int]]
"""Segments, and which rows of each are those of files as they are now."""

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
    def load(cls, path: Path, made_with: LibrarySettings) -> Segment | None:
        """Return the segment in a file, its rows unread; None if it is damaged, or of other settings or format."""
        try:
            with safe_open(path, "pt") as file:
                header, text = file.metadata(), file.get_tensor("entries").numpy().tobytes()
                of = {name: file.get_slice(name) for name in ("fisher", "sketch")}
                found = {name: (rows.get_dtype(), rows.get_shape()) for name, rows in of.items()}
            if header != _header(made_with, text):
                return None
            sizes, times, *columns = json.loads(text)
            entries = list(map(Entry._make, zip(*columns, strict=True)))
            made = cls(path, None, entries, list(zip(sizes, times, strict=True)))
        except (SafetensorError, ValueError, TypeError, OSError):
            return None
        wide = {"fisher": made_with.filters, "sketch": SKETCH}
        return made if found == {name: ("F32", [len(entries), width]) for name, width in wide.items()} else None

    def save(self, made_with: LibrarySettings) -> Segment:
        """Return the segment written to its file, or itself where that cannot be."""
        assert self._rows is not None
        columns = [*zip(*self.stamps, strict=True), *zip(*self.entries, strict=True)]  # read twice as fast as rows
        text = json.dumps(columns).encode()
        tensors = self._rows | {"entries": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        try:
            self.path.parent.mkdir(exist_ok=True)
            with atomic_path(self.path) as new:
                new.write_bytes(safetensors.torch.save(tensors, _header(made_with, text)))
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

    def look(self) -> tuple[Live, list[Entry]]:
        """Return the rows of all embeddings, and the damaged files."""
        stamps = self._folder.stamps()
        self._load_segments()
        live, new = self._live(stamps)
        damaged: list[Entry] = []
        for start in range(0, len(new), self._most):
            self._add(new[start : start + self._most], stamps, damaged)
        if new:
            live, _ = self._live(stamps)
        small = {segment: rows for segment, rows in live.items() if len(rows) < self._most / 2}
        if len(small) > _MOST_SMALL and self._writable:
            self._join(small)
            live, _ = self._live(stamps)
        return live, damaged

    def _load_segments(self) -> None:
        """Read the segments that are new; forget those that are gone."""
        files = set(self._folder.cache.glob("rows-*.safetensors"))
        kept = {path: one for path, one in self._segments.items() if path in files or one._rows is not None}
        for path in files - set(kept):
            if (segment := Segment.load(path, self._made_with)) is not None:  # else another one is made
                kept[path] = segment
        self._segments = kept

    def _live(self, stamps: Mapping[str, Stamp]) -> tuple[Live, list[str]]:
        """Return the rows of files as they are now, each file once, and the files that are in no segment."""
        left, live = dict(stamps), {}
        for segment in self._segments.values():
            pairs = zip(segment.entries, segment.stamps, strict=True)
            live[segment] = [row for row, (entry, stamp) in enumerate(pairs) if left.get(entry.file) == stamp]
            for row in live[segment]:
                del left[segment.entries[row].file]
        return live, sorted(left)

    def _add(self, files: Sequence[str], stamps: Mapping[str, Stamp], damaged: list[Entry]) -> None:
        """Read embeddings, every byte of them, and make a segment of those that are sound."""
        entries, rows = [], []
        for file in files:
            found = self._read(file)
            if isinstance(found, Entry):
                damaged.append(found)
            elif found is not None:
                entries.append(Entry.of(found, file))
                rows.append(found.fisher)
        if entries:
            fisher = torch.stack(rows)
            self._keep({"fisher": fisher.float(), "sketch": sketch(fisher)}, entries, [stamps[e.file] for e in entries])

    def _read(self, file: str) -> Embedding | Entry | None:
        """Return an embedding, the entry of a file that cannot be used, or None if the file was removed."""
        path = self._folder.root / file
        try:
            embedding = Embedding.load(path)
        except (ValueError, TypeError, KeyError, OSError) as error:
            return Entry(path.name, file, "damaged", error=str(error)) if path.exists() else None
        if changes := self._made_with.changes(embedding):
            why = f"made with other settings than the library (there against here): {'; '.join(changes)}"
            return Entry(path.name, file, "damaged", error=why)
        return embedding

    def _keep(self, rows: dict[str, Tensor], entries: list[Entry], stamps: list[Stamp]) -> None:
        path = self._folder.cache / f"rows-{secrets.token_hex(8)}.safetensors"
        made = Segment(path, rows, entries, stamps)
        self._segments[path] = saved = made.save(self._made_with)
        self._writable = saved is not made

    def _join(self, small: Live) -> None:
        """Replace small segments by full ones."""
        with contextlib.suppress(FileNotFoundError):  # somebody else does it
            for group in _grouped(small, self._most):
                self._keep(
                    {
                        what: torch.cat([segment.rows(what, torch.tensor(rows)) for segment, rows in group])
                        for what in ("fisher", "sketch")
                    },
                    [segment.entries[row] for segment, rows in group for row in rows],
                    [segment.stamps[row] for segment, rows in group for row in rows],
                )
            for segment in small:
                del self._segments[segment.path]
                with contextlib.suppress(OSError):
                    segment.path.unlink(missing_ok=True)


def _grouped(small: Live, most: int) -> Iterator[list[tuple[Segment, list[int]]]]:
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
