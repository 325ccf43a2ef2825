"""`Loader`: files are decoded once, and every pass has the same bits."""

import dataclasses
import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from task2vec_ext.data import ImageCache, Loader, Preprocess, as_task, batches
from task2vec_ext.data import folder as source

SMALL = Preprocess(12, 10)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded in this process."""
    names, load = [], source.load_image

    def counted(path, **how):
        names.append(os.path.basename(path))
        return load(path, **how)

    monkeypatch.setattr(source, "load_image", counted)
    return names


def _read(loader, indices, **options):
    """The images of a pass as the probe takes them."""
    return torch.cat([SMALL.normalised(batch.images) for batch in loader.batches(indices, **options)])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("sizes", "again"), [((10**6, 0), 0), ((0, 10**6), 0), ((900, 600), 5), ((0, 0), 10)], ids=str)
def test_a_loader_decodes_once_and_gives_the_same_bits_in_every_pass(folder, decoded, num_workers, sizes, again):
    task = as_task(folder)
    expected = torch.stack([SMALL(task[i][0]) for i in range(10)])
    decoded.clear()
    loader = Loader(task, SMALL, batch_size=4, num_workers=num_workers, cache=ImageCache(*sizes))
    assert torch.equal(_read(loader, range(10)), expected)
    first = len(decoded)
    order = [3, 9, 9, 0]
    assert torch.equal(_read(loader, order, targets=torch.arange(4)), expected[order])
    assert torch.equal(_read(loader, range(10)), expected)
    loader.close()
    if num_workers == 0:
        assert first == 10
        assert len(decoded) >= 10 + again
        assert again or len(decoded) == 10
    else:
        assert decoded == []  # never in this process
    assert multiprocessing.active_children() == []


def test_a_loader_gives_the_labels_it_is_given_or_the_tasks_own(folder):
    loader = Loader(as_task(folder), SMALL, batch_size=4, cache=ImageCache())
    for _ in range(2):  # from the files, from the cache
        assert torch.cat([batch.labels for batch in loader.batches([9, 0, 4])]).tolist() == [1, 0, 0]
    targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (batch,) = loader.batches([7, 2], targets=targets)
    assert torch.equal(batch.labels, targets)


def test_a_loader_sends_bytes_and_only_images_of_more_bits_as_floats(folder):
    deep = np.full((20, 20), 40_000, np.uint16)
    Image.fromarray(deep).save(folder / "cats" / "2.png")
    loader = Loader(as_task(folder), SMALL, batch_size=2, cache=ImageCache())
    for _ in range(2):
        one, mixed = loader.batches(range(4))
        assert one.images.dtype == torch.uint8
        assert one.images.nbytes == 2 * 3 * 10 * 10
        assert mixed.images.dtype == torch.float32
        expected = torch.stack([SMALL(as_task(folder)[i][0]) for i in (2, 3)])
        assert torch.equal(mixed.images, expected)


def test_a_loader_keeps_its_processes_while_there_is_something_to_read():
    class Whose(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return Image.new("RGB", (12, 12), (index, 0, 255)), os.getpid()

    def processes(loader):
        return {int(label) for batch in loader.batches(range(40)) for label in batch.labels}

    loader = Loader(as_task(Whose()), SMALL, batch_size=4, num_workers=2)
    assert processes(loader) == processes(loader) != {os.getpid()}
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    assert multiprocessing.active_children() == []


def test_a_file_that_changes_between_two_passes_is_named(folder):
    loader = Loader(as_task(folder), SMALL, batch_size=4, cache=ImageCache())
    list(loader.batches(range(10)))
    Image.new("RGB", (30, 30), "red").save(folder / "cats" / "3.png")
    with pytest.raises(ValueError, match=r"stay as they were in the first pass, got 1 that changed since: cats/3.png"):
        loader.batches(range(10))


def test_a_file_that_changes_while_it_is_read_is_named(folder, monkeypatch):
    load = source.load_image

    def changing(path, **how):
        image = load(path, **how)
        if path.endswith("3.png"):
            os.utime(path, (1, 1))
        return image

    monkeypatch.setattr(source, "load_image", changing)
    with pytest.raises(ValueError, match=r"image 3 \(cats/3.png\): the file was changed while it was read"):
        list(Loader(as_task(folder), SMALL, batch_size=4).batches(range(10)))


def test_a_folder_of_crops_serves_the_next_run_and_what_is_damaged_there_is_decoded_again(folder, decoded, tmp_path):
    kept = tmp_path / "kept"
    expected = _read(Loader(as_task(folder), SMALL, batch_size=4, cache=ImageCache(0, 10**6, kept)), range(10))
    decoded.clear()
    assert torch.equal(
        _read(Loader(as_task(folder), SMALL, batch_size=4, cache=ImageCache(0, 10**6, kept)), range(10)), expected
    )
    assert decoded == []
    (file,) = kept.iterdir()
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + 10 * 4 + 150] ^= 1  # behind ten sums, in the first crop
    file.write_bytes(content)
    again = _read(Loader(as_task(folder), SMALL, batch_size=4, cache=ImageCache(0, 10**6, kept)), range(10))
    assert torch.equal(again, expected)
    assert len(decoded) == 1


def test_crops_of_another_preprocessing_or_white_are_not_taken(folder, decoded):
    cache = ImageCache()
    list(Loader(as_task(folder), SMALL, batch_size=4, cache=cache).batches(range(10)))
    decoded.clear()
    other = dataclasses.replace(SMALL, mean=(0, 0, 0))
    list(Loader(as_task(folder), other, batch_size=4, cache=cache).batches(range(10)))
    assert decoded == []  # the crops are the same
    for how in ({"interpolation": "bicubic"}, {"resize": 11}):
        decoded.clear()
        list(Loader(as_task(folder), dataclasses.replace(SMALL, **how), batch_size=4, cache=cache).batches(range(10)))
        assert len(decoded) == 10
    decoded.clear()
    list(Loader(as_task(folder, max_value=255), SMALL, batch_size=4, cache=cache).batches(range(10)))
    assert len(decoded) == 10


def test_drafts_are_of_image_files_alone(folder):
    draft = dataclasses.replace(SMALL, decoder="draft")
    with pytest.raises(NotImplementedError, match="image files without masks for decoder='draft'"):
        Loader(as_task([(torch.zeros(3, 4, 4), 0)] * 2), draft, batch_size=1)
    assert len(list(batches(as_task(folder), range(10), draft, batch_size=4))) == 3


def test_dark_images_from_a_cache_are_judged_as_those_from_files(tmp_path):
    for i in range(8):
        (tmp_path / "cd"[i % 2]).mkdir(exist_ok=True)
        Image.new("L", (12, 12), 3).save(tmp_path / "cd"[i % 2] / f"{i}.png")
    cache = ImageCache()
    for _ in range(2):
        with pytest.raises(ValueError, match="expected pixels up to the value of white"):
            list(Loader(as_task(tmp_path), SMALL, batch_size=4, cache=cache).batches(range(8)))
