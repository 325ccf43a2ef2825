"""Damaged and hostile files: who reads them raises an error in one line, or returns what is right."""

import faulthandler
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from task2vec_ext import Embedding, build_library, fisher_embed
from task2vec_ext.library.cache import Segment
from task2vec_ext.probe.checkpoint import read_checkpoint

FILES = 2_000  # of each of five kinds
NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"null", b"[]", b'"1"', b"9" * 19, b"18446744073709551615", b"{}")


def flip(data, rng):
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_header(data, rng):
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(min(len(data), 2048))] = rng.randrange(256)


def cut(data, rng):
    del data[rng.randrange(len(data)) :]


def leave_out(data, rng):
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 8, 512))]


def insert(data, rng):
    start = rng.randrange(len(data))
    data[start:start] = rng.choice((b"\0", b"\xff" * 9, bytes(data[:100])))


def long_header(data, rng):
    data[:8] = rng.choice((0, 1, 2, len(data) - 8, len(data), 1 << 31, (1 << 63) - 1)).to_bytes(8, "little")


def other_number(data, rng):
    found = [*re.finditer(rb"\d+", bytes(data[:6000]))] or [re.match(rb"", b"")]
    one = rng.choice(found)
    data[one.start() : one.end()] = rng.choice(NUMBERS)


def other_name(data, rng):
    found = [*re.finditer(rb"[a-z_]{4,}", bytes(data[:6000]))] or [re.match(rb"", b"")]
    one = rng.choice(found)
    data[one.start() : one.end()] = rng.choice((b"", b"fisher", b"__class__", b"\xff\xfe"))


KINDS = ("embedding", "segment", "pth", "legacy", "safetensors")
CHANGES = (flip, flip_header, cut, leave_out, insert, long_header, other_number, other_name)


def seal(data):
    """With the right checksum for what is in it: somebody made it on purpose."""
    digest = re.search(rb'sha256\\":\\"([0-9a-f]{64})', bytes(data))
    if digest:
        blank = bytes(data).replace(digest[1], b"0" * 64)
        data[:] = blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode())


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def read_embedding(path):
    found = Embedding.load(path)
    assert found.fisher.isfinite().all()
    return found._fields(), {"fisher": found.fisher, "prior": found.prior}


def read_or_message(read, path):
    try:
        return read(path)
    except ValueError as error:
        return str(error)


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """The files, and what reads each of them."""
    root = tmp_path_factory.mktemp("made")
    library = build_library(folders, root / "library", "tiny")
    library.nearest(library.names()[0])
    (segment,) = (root / "library" / "cache").glob("rows-*.safetensors")
    fisher_embed(folders[0], probe="tiny").save(root / "embedding")
    state = {f"layer{i}.weight": torch.randn(64, 64, generator=torch.Generator().manual_seed(i)) for i in range(6)}
    torch.save(state, root / "pth")
    torch.save(state, root / "legacy", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, root / "safetensors")

    def read_segment(path):
        if (found := Segment.load(path, library.made_with)) is None:
            raise ValueError("it is not used")
        rows = {what: found.rows(what, torch.arange(len(found.entries))) for what in ("fisher", "sketch")}
        return json.loads(json.dumps([found.entries, found.stamps])), rows

    def read_state(path):
        return {}, read_checkpoint(path)

    readers = {"embedding": read_embedding, "segment": read_segment, **dict.fromkeys(KINDS[2:], read_state)}
    files = {name: (segment if name == "segment" else root / name).read_bytes() for name in readers}
    return {name: (files[name], reader) for name, reader in readers.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_an_error_in_one_line_or_what_it_says(kind, made, tmp_path):
    original, read = made[kind]
    path, rng, outcomes = tmp_path / "file", random.Random(kind), {"error": 0, "read": 0}
    path.write_bytes(original)
    fields, tensors = read(path)
    shapes = {name: one.shape for name, one in tensors.items()}
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = resident("VmHWM")
    faulthandler.dump_traceback_later(300, exit=True)  # a reader that hangs ends the tests
    try:
        for _ in range(FILES):
            data = bytearray(original)
            change = rng.choice(CHANGES)
            change(data, rng)
            if on_purpose := kind == "embedding" and rng.random() < 0.5:
                seal(data)
            path.write_bytes(data)
            outcome = read_or_message(read, path)
            outcomes["error" if isinstance(outcome, str) else "read"] += 1
            if isinstance(outcome, str):
                assert "\n" not in outcome
                assert len(outcome) < 2000
            elif kind in ("embedding", "segment") and not on_purpose:
                # Numbers of segments, and all of checkpoints, have no checksum; `Library.verify` compares the former.
                assert outcome[0] == fields
                assert {name: one.shape for name, one in outcome[1].items()} == shapes
                assert kind == "segment" or all(torch.equal(outcome[1][name], one) for name, one in tensors.items())
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert outcomes["error"] > FILES / 3, outcomes
    assert resident("VmHWM") - before < 4 * len(original) + (8 << 20)  # and what the allocator keeps of all files
