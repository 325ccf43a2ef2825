"""What lies in people's folders: none of it may stop a task that is told to go on, or cost memory."""

import os
import struct
import zlib

import pytest
from layouts import image
from PIL import Image, ImageFile

from task2vec_ext import Embedding, Task2VecWarning, as_task, fisher_embed
from task2vec_ext.data import load_image

SIDE = 50_000


def bomb(path):
    """A PNG that says it has 50,000 × 50,000 pixels: 7.5 GB as RGB, some 100 bytes on disk."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def truncated(path):
    Image.effect_noise((64, 64), 90).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-400])


BAD = {
    "bomb.png": (bomb, rf"DecompressionBombError: .*{SIDE**2} pixels"),
    "truncated.jpg": (truncated, "OSError: .*truncated"),
    "empty.jpg": (lambda path: path.touch(), r"an empty file \(zero bytes\)"),
    "folder.png": (lambda path: path.mkdir(), "a directory"),
    "loop.png": (lambda path: path.symlink_to(path.name), "a link that leads to no file"),
    "dangling.png": (lambda path: path.symlink_to("nowhere.png"), "a link that leads to no file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_with_its_reason(tmp_path, monkeypatch, name):
    make, reason = BAD[name]
    make(tmp_path / name)
    if name == "bomb.png":
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=f"load_image: expected .*{name}, got {reason}"):
        load_image(tmp_path / name)


@pytest.fixture
def folder(tmp_path):
    """Two classes of four good images, one with a name that is not UTF-8, and everything bad among them."""
    for i in range(4):
        image(tmp_path / "pets" / "cats" / f"{i}.png", 60 * i)
        image(tmp_path / "pets" / "dogs" / f"{i}.png", 255 - 50 * i)
    for name, (make, _) in BAD.items():
        make(tmp_path / "pets" / "cats" / name)
    try:
        os.rename(tmp_path / "pets" / "dogs" / "3.png", os.fsencode(tmp_path / "pets" / "dogs") + b"/\xff.png")
    except OSError:
        pytest.skip("the file system takes only UTF-8 names")
    return tmp_path / "pets"


def test_a_task_goes_on_without_its_bad_images(folder, tmp_path):
    task = as_task(folder)
    with pytest.warns(Task2VecWarning, match=f"left out {len(BAD) - 1} of "):
        embedding = fisher_embed(task, "tiny", on_error="skip", progress=False)
    assert embedding.num_samples == 8
    # The folder is entered, as any folder in a class is; it holds nothing.
    assert embedding.num_skipped == len(BAD) - 1
    embedding.save(tmp_path / "pets.safetensors")
    assert Embedding.load(tmp_path / "pets.safetensors").task_digest == task.digest()


def test_a_class_whose_name_is_not_utf8_is_saved_and_loaded(folder, tmp_path):
    os.rename(folder / "dogs", os.fsencode(folder) + b"/dogs\xff")
    task = as_task(folder)
    assert task.classes == ("cats", os.fsdecode(b"dogs\xff"))
    with pytest.warns(Task2VecWarning, match=f"left out {len(BAD) - 1} of "):
        embedding = fisher_embed(task, "tiny", on_error="skip", progress=False)
    embedding.save(tmp_path / "pets.safetensors")
    assert Embedding.load(tmp_path / "pets.safetensors").classes == task.classes
