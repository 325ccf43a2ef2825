import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import assert_near
from PIL import Image
from small import Blobs, embed

from task2vec_ext import (
    Embedding,
    EmbedSettings,
    ImageCache,
    Task2VecWarning,
    VariationalSettings,
    as_task,
    distance_matrix,
    fisher_embed,
    load_probe,
)
from task2vec_ext.data import folder as source

TINY = load_probe("tiny")


def test_grey_rgba_palette_cmyk_16_bit_and_rotated_images_of_the_same_scene_agree(folder, tmp_path):
    originals = [
        (Image.open(path).convert("L").convert("RGB"), int(path.parent.name == "dogs"))
        for path in sorted(folder.rglob("*.png"))
    ]
    base = embed(originals, TINY)

    def converted(how):
        return embed([(how(image), label) for image, label in originals], TINY)

    def rotated(image):
        path = tmp_path / f"{id(image)}.png"
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown rotated by 90° clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        return Image.open(path)

    ways = {
        "grey": lambda image: image.convert("L"),
        "RGBA": lambda image: image.convert("RGBA"),
        "palette": lambda image: image.convert("L").convert("P"),
        "16 bit": lambda image: np.asarray(image.convert("L")).astype(np.uint16) * 257,
        "EXIF": rotated,
    }
    for name, how in ways.items():
        assert_near(
            converted(how).fisher, base.fisher, 6e-2 if name == "16 bit" else 1e-6
        )  # 8-bit rounding after the resize
    assert_near(converted(lambda image: image.convert("CMYK")).fisher, base.fisher, 6e-2)  # lossy by a few levels


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pixels_that_are_not_finite_are_named(value):
    blobs = Blobs()
    blobs.images[7, 0, 3, 3] = value
    with pytest.raises(ValueError, match="image 7"):
        embed(blobs)
    with pytest.warns(Task2VecWarning, match="left out 1 of 24 images of 'Blobs' that could not be read: image 7. Why"):
        result = embed(blobs, on_error="skip")
    assert (result.num_samples, result.num_skipped) == (23, 1)


def test_an_unreadable_image_is_named_or_skipped_and_counted(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "cats" / "3.png").write_bytes((folder / "cats" / "3.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cats/3\.png"):
        embed(copy, TINY)
    with pytest.warns(Task2VecWarning, match=r"image 3 \(cats/3.png\)"):
        result = embed(copy, TINY, on_error="skip")
    assert (result.num_samples, result.num_skipped) == (15, 1)
    assert result.metadata["skipped"] == ["image 3 (cats/3.png)"]


def test_images_that_change_between_the_passes_are_told_of():
    class Restless(Blobs):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + 0.1 * torch.randn(image.shape), label

    with pytest.warns(Task2VecWarning, match="another image each time it is read"):
        embed(Restless())


@pytest.mark.parametrize(
    ("bad", "shown"), [([3, 10], "image 3; image 10. Why"), (range(12), "image 9; and 2 more. Why")]
)
def test_skipped_images_are_counted_and_listed(bad, shown):
    blobs = Blobs(n=36)
    blobs.images[list(bad)] = math.nan
    with pytest.warns(Task2VecWarning, match=f"left out {len(bad)} of 36 .*{shown} the first: .*finite pixels"):
        result = embed(blobs, on_error="skip")
    assert result.num_skipped == len(bad)
    assert result.metadata == {"skipped": [f"image {i}" for i in bad]}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("bad", "message"),
    [(1, "every class of 'x', got none of class '?b?\\w?'? .*images cannot be read"), (None, "got none of 24")],
)
def test_a_class_that_cannot_be_read_is_named(bad, message, listed):
    blobs = Blobs()
    blobs.images[(blobs.targets == bad) if bad is not None else slice(None)] = math.nan
    if not listed:
        blobs.labels_apart, blobs.__class__ = blobs.targets, Unlisted
        del blobs.targets
    elif bad is not None:
        blobs.classes, message = (
            ("a", "bees", "c"),
            r"got none of class 'bees' \(8 images cannot be read, such as image 1: ",
        )
    with pytest.raises(ValueError, match=message):
        embed(as_task(blobs, name="x"), on_error="skip")


class Unlisted(Blobs):
    def __getitem__(self, index):
        return self.images[index], int(self.labels_apart[index])


def test_images_whose_features_are_all_the_same_are_refused():
    grey = [(Image.new("RGB", (40, 40), "grey"), i % 2) for i in range(9)]
    with pytest.raises(ValueError, match="the probe tells apart, got the same features for all 9 images of 'grey'"):
        embed(grey, TINY, name="grey", batch_size=4)


@pytest.mark.parametrize("n", [12, 40])
def test_images_that_are_in_several_classes_are_warned_of(n):
    blobs = Blobs(n=n)
    blobs.images = torch.cat([blobs.images, blobs.images])
    blobs.targets = torch.arange(2).repeat_interleave(n)
    with pytest.warns(Task2VecWarning, match=f"got {2 * n} of {2 * n} images of 'x' that .*; are they in several"):
        embed(blobs, name="x", batch_size=7)


def test_labels_that_are_text_in_the_items_alone_are_numbered():
    named = Blobs()
    names = [("zebra", "ant", "cow")[label] for label in named.targets]
    del named.targets
    named.__class__ = type("Named", (Blobs,), {"__getitem__": lambda self, i: (self.images[i], names[i])})
    numbered = Blobs()
    numbered.targets = torch.tensor([2, 0, 1])[numbered.targets]
    result = embed(named)
    assert result.classes == ("ant", "cow", "zebra")
    assert torch.equal(result.fisher, embed(numbered).fisher)


def test_class_names_that_do_not_fit_the_labels_are_left_out():
    blobs = Blobs(classes=2)
    blobs.classes = ["a", "b", "c"]
    assert embed(blobs).classes is None


@pytest.mark.parametrize("estimator", ["signed", "exact", "empirical", "variational"])
@pytest.mark.parametrize("cache", ["default", "temporary file", "folder", "off"])
def test_every_image_is_decoded_once_and_the_cache_changes_no_bit(folder, tmp_path, monkeypatch, estimator, cache):
    decoded, load = [], source.load_image

    def counted(path, **how):
        decoded.append(path)
        return load(path, **how)

    variational = VariationalSettings(epochs=3, epoch_samples=20) if estimator == "variational" else None
    how = {"settings": EmbedSettings(estimator=estimator, variational=variational), "progress": False, "batch_size": 5}
    expected = fisher_embed(folder, TINY, image_cache=ImageCache(0, 0), **how)
    monkeypatch.setattr(source, "load_image", counted)
    caches = {
        "default": None,
        "temporary file": ImageCache(0, 10**6),
        "folder": ImageCache(0, 10**6, tmp_path),
        "off": ImageCache(0, 0),
    }
    embedding = fisher_embed(folder, TINY, image_cache=caches[cache], **how)
    assert torch.equal(embedding.fisher, expected.fisher)
    passes = {"variational": 16 + 3 * 20}.get(estimator, 2 * 16)
    assert len(decoded) == (passes if cache == "off" else 16)
    if cache == "folder":
        decoded.clear()
        fisher_embed(folder, TINY, image_cache=ImageCache(0, 10**6, tmp_path), **how)
        assert decoded == []


def test_two_processes_share_a_folder_of_crops(folder, tmp_path):
    script = (
        "import sys; from task2vec_ext import ImageCache, fisher_embed; "
        "cache = ImageCache(0, 10**6, sys.argv[2]); "
        "print(fisher_embed(sys.argv[1], 'tiny', image_cache=cache, progress=False).fisher.sum().item())"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) for _ in range(2)]
    found = {float(process.communicate()[0]) for process in started}
    assert found == {float(fisher_embed(folder, "tiny", progress=False).fisher.sum())}


def test_drafts_are_other_embeddings_and_say_so(tmp_path):
    for i in range(8):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.effect_noise((200, 220), 60 + 20 * i).convert("RGB").save(tmp_path / "ab"[i % 2] / f"{i}.jpg")
    exact, draft = (fisher_embed(tmp_path, "tiny", decoder=decoder, progress=False) for decoder in ("exact", "draft"))
    assert "decoder" not in exact.probe.preprocess
    assert draft.probe.preprocess["decoder"] == "draft"
    assert not torch.equal(exact.fisher, draft.fisher)
    with pytest.raises(ValueError, match=r"preprocess decoder: None against draft"):
        distance_matrix([exact, draft])
    draft.save(tmp_path / "draft.safetensors")
    assert Embedding.load(tmp_path / "draft.safetensors").probe == draft.probe
    with pytest.raises(NotImplementedError, match="expected image files without masks"):
        fisher_embed([(Image.new("RGB", (40, 40)), i % 2) for i in range(4)], "tiny", decoder="draft", progress=False)
