import hashlib
import os
import shutil

import numpy as np
import pytest
import torch
from layouts import image
from PIL import Image
from torch.utils.data import TensorDataset

from task2vec_ext import as_task
from task2vec_ext.data import identity, subset
from task2vec_ext.data.identity import digest_of_record, same_digest


@pytest.fixture
def pets(tmp_path):
    for shade in range(4):
        image(tmp_path / "pets" / ("cats" if shade < 2 else "dogs") / f"{shade}.bmp", shade)
    return tmp_path / "pets"


def replaced(file, shade, keep_times=False):
    """Another image of the same name and size."""
    before = file.stat()
    image(file, shade)
    assert file.stat().st_size == before.st_size
    if keep_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


CHANGES = {
    "nothing": (lambda root: None, "same"),
    "touched": (lambda root: (root / "cats" / "0.bmp").touch(), "same"),
    "replaced": (lambda root: replaced(root / "cats" / "0.bmp", 99), "replaced"),
    "replaced, its time kept": (lambda root: replaced(root / "cats" / "0.bmp", 99, keep_times=True), "replaced"),
    "another size": (lambda root: Image.new("L", (9, 9)).save(root / "cats" / "0.bmp"), "replaced"),
    "swapped": (lambda root: os.replace(root / "cats" / "0.bmp", root / "cats" / "1.bmp"), "other"),
    "added": (lambda root: image(root / "cats" / "9.bmp"), "other"),
    "removed": (lambda root: (root / "cats" / "0.bmp").unlink(), "other"),
    "relabelled": (lambda root: os.replace(root / "cats" / "0.bmp", root / "dogs" / "0.bmp"), "other"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_images_is_noticed(pets, name):
    change, expected = CHANGES[name]
    record, digest = as_task(pets).record(), as_task(pets).digest()
    change(pets)
    task = as_task(pets)
    assert task.change_since(record) == expected
    assert task.change_since(digest) == expected
    assert (task.digest() == digest) == (expected == "same")


def test_a_copy_has_the_same_images(pets):
    record, digest = as_task(pets).record(), as_task(pets).digest()
    copy = as_task(shutil.copytree(pets, pets.parent / "copy"))
    assert digest_of_record(record) == digest == copy.digest()
    assert copy.change_since(record) == "same"
    assert subset(copy, [0, 1]).digest() == subset(as_task(pets), [0, 1]).digest() != digest


@pytest.mark.parametrize("limit", ["MAX_FILES", "MAX_BYTES"])
def test_of_many_files_the_times_decide(pets, monkeypatch, limit):
    monkeypatch.setattr(identity, limit, 3)
    monkeypatch.setattr(identity, "_contents", lambda paths: pytest.fail("read"))
    record, digest = as_task(pets).record(), as_task(pets).digest()
    assert digest_of_record(record) == digest
    assert as_task(pets).change_since(record) == as_task(pets).change_since(digest) == "same"
    replaced(pets / "cats" / "0.bmp", 99)
    assert as_task(pets).change_since(record) == as_task(pets).change_since(digest) == "replaced"
    assert as_task(pets).digest() != digest


def test_a_record_is_checked_without_reading(pets, monkeypatch):
    record = as_task(pets).record()
    monkeypatch.setattr(identity, "_contents", lambda paths: pytest.fail("read"))
    assert as_task(pets).change_since(record) == "same"


def test_a_digest_of_version_0_2_knows_names_sizes_and_labels(pets):
    task = as_task(pets)
    old = hashlib.sha256()
    for path, label, name in zip(task.source.paths, task.source.labels, task.source.names, strict=True):
        old.update(f"{name!r} {os.path.getsize(path)} {label}\n".encode())
    assert task.change_since(old.hexdigest()) == "same"
    assert same_digest(old.hexdigest(), task.digest())
    replaced(pets / "cats" / "0.bmp", 99)
    assert task.change_since(old.hexdigest()) == "same"
    Image.new("L", (9, 9)).save(pets / "cats" / "0.bmp")
    assert task.change_since(old.hexdigest()) == "other"
    assert not same_digest(old.hexdigest(), task.digest())
    assert not same_digest(None, task.digest())


def test_what_cannot_be_read_has_a_digest(pets):
    os.mkfifo(pets / "cats" / "pipe.bmp")  # reading it would wait for ever
    (pets / "cats" / "gone.bmp").symlink_to("nowhere")
    (pets / "cats" / "loop.bmp").symlink_to("loop.bmp")
    assert as_task(pets).change_since(as_task(pets).record()) == "same"


@pytest.mark.parametrize(
    "kind",
    [
        lambda a: [(Image.fromarray(x), y) for x, y in zip(a, (0, 1), strict=True)],
        lambda a: [(x, y) for x, y in zip(a, (0, 1), strict=True)],
        lambda a: [(torch.from_numpy(x), y) for x, y in zip(a, (0, 1), strict=True)],
        lambda a: TensorDataset(torch.from_numpy(a), torch.tensor([0, 1])),
    ],
    ids=["pil", "array", "tensor", "dataset"],
)
def test_images_in_memory_have_a_digest(kind, monkeypatch):
    images = np.zeros((2, 5, 5), np.uint8)
    digest = as_task(kind(images)).digest()
    assert as_task(kind(images.copy())).change_since(digest) == "same"
    images[1, 4, 4] = 1
    assert as_task(kind(images)).change_since(digest) == "other"
    assert as_task(kind(images)).change_since(None) == "same"  # a library of version 0.2 knows its name alone
    monkeypatch.setattr(identity, "MAX_BYTES", 10)
    assert as_task(kind(images)).digest() is None
