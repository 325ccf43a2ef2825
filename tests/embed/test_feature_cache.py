import os

import pytest
import torch
from PIL import Image
from small import Blobs, small_probe

from task2vec_ext import EmbedSettings, FeatureCache, ImageCache, Task2VecWarning, as_task, build_library, load_probe
from task2vec_ext.data import folder
from task2vec_ext.embed import Work, embed_task
from task2vec_ext.embed.feature_cache import keys


@pytest.fixture(scope="module")
def probe():
    return load_probe("tiny")


@pytest.fixture
def images(tmp_path) -> list[tuple[str, int]]:
    """Twelve files of three classes."""
    for i in range(12):
        Image.effect_noise((40, 40 + i), 20 + 10 * i).convert("RGB").save(tmp_path / f"{i}.png")
    return [(str(tmp_path / f"{i}.png"), i % 3) for i in range(12)]


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Return a list that will hold the name of every file that is read."""
    names, load = [], folder.load_image

    def counted(path, **how):
        names.append(os.path.basename(path))
        return load(path, **how)

    monkeypatch.setattr(folder, "load_image", counted)
    return names


def embed(task, probe, cache=None, **how):
    return embed_task(as_task(task), probe, EmbedSettings(), Work(feature_cache=cache, progress=False, **how))


def test_a_task_takes_what_another_has_of_its_images_and_its_embedding_is_the_same(probe, images, read):
    cache = FeatureCache()
    embed(images[:9], probe, cache, batch_size=2)
    assert len(cache) == 9
    other = [(path, label % 2) for path, label in images]
    expected = embed(other, probe, batch_size=2)
    read.clear()
    embedding = embed(other, probe, cache, batch_size=2)
    assert float((embedding.fisher - expected.fisher).norm() / expected.fisher.norm()) < 1e-6
    assert embedding.head.nll == pytest.approx(expected.head.nll, rel=1e-5)
    # Three new ones and the first batch, which the network is checked with, and the others for the Fisher.
    assert len(cache) == 12
    assert sorted(read) == sorted(f"{i}.png" for i in range(12))
    read.clear()
    embed(other, probe, cache, batch_size=2, image_cache=ImageCache(0, 0))
    assert len(read) == 12 + 2


def test_a_file_that_changed_another_probe_and_other_preprocessing_are_unknown(probe, images):
    cache, task = FeatureCache(), as_task(images)
    everything = torch.arange(12)
    embed(task, probe, cache)
    assert cache.get(keys(task, probe, everything))[0].all()
    assert not cache.get(keys(task, load_probe("tiny", image_size=24), everything))[0].any()
    Image.new("RGB", (40, 40)).save(images[3][0])
    os.remove(images[4][0])
    known, features = cache.get(keys(task, probe, everything))
    assert (~known).nonzero().flatten().tolist() == [3, 4]
    assert features.shape == (10, probe.feature_size)


def test_its_size_is_bounded_and_what_is_used_stays(probe, images):
    row = 4 * probe.feature_size
    cache, task = FeatureCache(max_bytes=3 * row), as_task(images)
    rows, named = torch.rand(12, probe.feature_size), keys(task, probe, torch.arange(12))
    for i in (0, 1, 2):
        cache.put(named[i : i + 1], rows[i : i + 1])
    cache.get(named[:1])
    cache.put(named[3:4], rows[3:4])
    known, features = cache.get(named[:4])
    assert known.tolist() == [True, False, True, True]
    assert torch.equal(features, rows[[0, 2, 3]])
    assert cache.bytes == 3 * row
    nothing = FeatureCache(max_bytes=0)
    nothing.put(named, rows)
    assert (len(nothing), nothing.bytes) == (0, 0)
    with pytest.raises(ValueError, match="max_bytes >= 0"):
        FeatureCache(max_bytes=-1)


def test_images_that_are_no_files_are_not_kept():
    cache = FeatureCache()
    embed(Blobs(), small_probe(), cache)
    assert len(cache) == 0


def test_a_broken_image_is_left_out_as_ever(probe, images):
    cache = FeatureCache()
    with open(images[5][0], "wb"):
        pass
    for _ in range(2):
        with pytest.warns(Task2VecWarning, match="left out 1 of 12"):
            embedding = embed(images, probe, cache, on_error="skip", batch_size=4)
        assert (embedding.num_samples, embedding.num_skipped, len(cache)) == (11, 1, 11)


def test_a_library_is_built_with_one(images, read, tmp_path):
    tasks = [as_task([(p, label % n) for p, label in images], name=f"of {n}") for n in (2, 3)]
    build_library(tasks, tmp_path / "library", "tiny", batch_size=2)
    assert len(read) == 12  # by both tasks, and by the look whether the options fit the first


def test_a_library_without_an_image_cache_reads_for_features_once(images, read, tmp_path):
    tasks = [as_task([(p, label % n) for p, label in images], name=f"of {n}") for n in (2, 3)]
    build_library(tasks, tmp_path / "library", "tiny", batch_size=2, image_cache=ImageCache(0, 0))
    assert len(read) == 4 + 12 + 12 + 2 + 12  # 4: whether the options fit the first task
