"""`batches`: images in the order asked for, errors that name the image, processes that end."""

import errno
import gc
import multiprocessing
import os
import signal

import pytest
import torch
from PIL import Image
from spy import Spy
from torch.utils.data import ConcatDataset, Dataset

from task2vec_ext.data import Failure, Preprocess, as_task, batches

SMALL = Preprocess(12, 10)


class Given(Dataset):
    """Returns its items, and raises those that are exceptions."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, BaseException):
            raise item
        return item


class Interrupting(Given):
    """Ctrl-C during the second image."""

    def __getitem__(self, index):
        if index == 1:
            raise KeyboardInterrupt
        return super().__getitem__(index)


class Dying(Given):
    """A process that is killed, as by the kernel when memory runs out."""

    def __getitem__(self, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def _image(value=0.5, size=4):
    return torch.full((3, size, size), value)


def _all(*args, **kwargs):
    return list(batches(*args, **kwargs))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_images_in_the_order_asked_for(folder, num_workers):
    task = as_task(folder)
    order = [9, 0, 3, 3, 7]
    got = _all(task, torch.tensor(order), SMALL, batch_size=2, num_workers=num_workers)
    assert [batch.index.tolist() for batch in got] == [[9, 0], [3, 3], [7]]
    assert [batch.labels.tolist() for batch in got] == [[1, 0], [0, 0], [1]]
    assert all(batch.index.dtype == batch.labels.dtype == torch.int64 for batch in got)
    images = torch.cat([batch.images for batch in got])
    assert images.dtype == torch.float32
    # Bit for bit, in any number of processes.
    assert torch.equal(images, torch.stack([SMALL(task[i][0]) for i in order]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_raise_a_clean_error_that_names_the_image(folder, num_workers):
    (folder / "cats" / "3.png").write_bytes(b"")
    iterator = batches(as_task(folder), range(10), SMALL, batch_size=2, num_workers=num_workers)
    assert next(iterator).index.tolist() == [0, 1]
    with pytest.raises(
        ValueError, match=r"^batches: expected usable images, got image 3 \(cats/3.png\): .*zero"
    ) as caught:
        next(iterator)
    assert "worker" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_skip_and_count_bad_images(folder, num_workers):
    for bad in ("cats/0.png", "cats/1.png", "dogs/8.png"):
        (folder / bad).write_bytes(b"bad")
    skipped = []
    got = _all(
        as_task(folder),
        range(10),
        SMALL,
        batch_size=2,
        num_workers=num_workers,
        on_error="skip",
        skipped=skipped,
    )
    assert [batch.index.tolist() for batch in got] == [[2, 3], [4, 5], [6, 7], [9]]
    assert [failure.index for failure in skipped] == [0, 1, 8]
    assert skipped[2].where == "image 8 (dogs/8.png)"
    assert "no image format" in skipped[2].reason


def test_batches_skip_without_a_list():
    task = as_task(Given((_image(float("nan")), 0), (_image(), 1)))
    assert [batch.index.tolist() for batch in batches(task, [0, 1], None, batch_size=2, on_error="skip")] == [[1]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_report_a_foreign_error_with_its_type(num_workers):
    task = as_task(Given((_image(), 0), KeyError("gone")))
    with pytest.raises(ValueError, match=r"got image 1: KeyError: 'gone'"):
        _all(task, [0, 1], SMALL, batch_size=4, num_workers=num_workers)
    skipped = []
    _all(task, [0, 1], SMALL, batch_size=4, num_workers=num_workers, on_error="skip", skipped=skipped)
    assert skipped == [Failure(1, "image 1", "KeyError: 'gone'")]


def test_batches_report_an_error_outside_of_the_data_set_with_its_type():
    class Unreadable(Image.Image):
        def load(self):
            raise OSError("truncated")

    image = Image.new("RGB", (2, 2))
    image.__class__ = Unreadable
    with pytest.raises(ValueError, match="got image 0: OSError: truncated"):
        _all(as_task(Given((image, 0))), [0], SMALL, batch_size=1)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ((_image(), "cat"), TypeError, "got 'cat'"),
        (_image(), TypeError, "expected pairs"),
        (
            ({"image": 1}, 0),
            TypeError,
            "image 1: to_rgb: expected a PIL image, a tensor or an array, got dict",
        ),
    ],
    ids=["label", "pair", "image"],
)
def test_batches_never_skip_what_is_not_the_images_fault(item, error, message, num_workers, on_error):
    task = as_task(Given((_image(), 0), item))
    with pytest.raises(error, match=message):
        _all(task, [0, 1], SMALL, batch_size=4, num_workers=num_workers, on_error=on_error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_batches_pass_preprocessed_images_through(dtype):
    images = [torch.randn(3, 4, 5, dtype=torch.float64).to(dtype) * 3 for _ in range(3)]
    (batch,) = batches(as_task([(image, i) for i, image in enumerate(images)]), [2, 0], None, batch_size=8)
    assert torch.equal(batch.images, torch.stack([images[2], images[0]]).float())


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "got torch.uint8; pass a Preprocess"),
        (Image.new("RGB", (4, 4)), TypeError, "got Image; pass a Preprocess"),
        (torch.zeros(1, 4, 4), ValueError, r"got \[1, 4, 4\]; pass a Preprocess"),
        (torch.zeros(4, 4), ValueError, r"got \[4, 4\]"),
        (_image(float("nan")), ValueError, "image 0: .*got NaN or infinity"),
        (_image(-float("inf")), ValueError, "image 0: .*got NaN or infinity"),
    ],
    ids=["uint8", "pil", "grey", "plane", "nan", "inf"],
)
def test_batches_refuse_what_is_not_preprocessed(image, error, message):
    with pytest.raises(error, match=message):
        _all(as_task([(image, 0)]), [0], None, batch_size=1)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_refuse_preprocessed_images_of_different_sizes(batch_size, on_error):
    task = as_task([(_image(), 0), (_image(), 1), (_image(size=5), 1)])
    with pytest.raises(ValueError, match=r"of one size .*\[3, 4, 4\] for image 0 and \[3, 5, 5\] for image 2"):
        _all(task, [0, 1, 2], None, batch_size=batch_size, on_error=on_error)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size ≥ 1"),
        ({"num_workers": -1}, ValueError, "num_workers ≥ 0"),
        ({"on_error": "ignore"}, ValueError, "got 'ignore'"),
        ({"indices": [0, 2]}, ValueError, r"indices in 0…1, got 2"),
        ({"indices": torch.tensor([-1, 0])}, ValueError, "got -1"),
        ({"indices": torch.tensor([True, False])}, TypeError, "turn a mask into indices"),
        ({"indices": [0.5]}, TypeError, "integer indices"),
    ],
    ids=str,
)
def test_batches_refuse_impossible_arguments_before_the_first_image(arguments, error, message):
    task = as_task(Given(RuntimeError("read"), RuntimeError("read")))
    with pytest.raises(error, match=message):
        batches(**{"task": task, "indices": [0], "preprocess": SMALL, "batch_size": 2, **arguments})


@pytest.mark.parametrize("indices", [[], range(0), torch.tensor([], dtype=torch.int64)])
def test_batches_of_nothing_are_none(indices):
    assert _all(as_task(Given((_image(), 0))), indices, SMALL, batch_size=2, num_workers=1) == []


def test_batches_leave_the_global_random_state_alone():
    state = torch.get_rng_state()
    _all(as_task(Given((_image(), 0))), [0], SMALL, batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)


def _started():
    return [process for process in multiprocessing.active_children() if process.is_alive()]


@pytest.mark.parametrize("how", ["end", "close", "forgotten", "error", "interrupt in the loop"])
def test_batches_leave_no_process_behind(how):
    bad = (_image(float("nan")), 0) if how == "error" else (_image(), 0)
    task = as_task([(_image(), 0)] * 9 + [bad])
    iterator = batches(task, range(10), None, batch_size=1, num_workers=2)
    next(iterator)
    assert len(_started()) == 2
    if how == "end":
        list(iterator)
    elif how == "close":
        iterator.close()
    elif how == "forgotten":
        del iterator
        gc.collect()
    elif how == "error":
        with pytest.raises(ValueError, match="image 9"):
            list(iterator)
    else:
        with pytest.raises(KeyboardInterrupt):
            iterator.throw(KeyboardInterrupt)
    assert _started() == []


def test_batches_let_an_interrupt_through():
    iterator = batches(as_task(Interrupting((_image(), 0), (_image(), 1))), [0, 1], None, batch_size=1)
    next(iterator)
    with pytest.raises(KeyboardInterrupt):
        next(iterator)


def test_batches_say_what_to_do_when_a_process_dies():
    iterator = batches(as_task(Dying((_image(), 0), None)), [0, 1], None, batch_size=1, num_workers=2)
    with pytest.raises(RuntimeError, match=r"but one died .*pass a smaller num_workers, or 0") as caught:
        list(iterator)
    # The other one has ended too, although the traceback still holds the loader.
    assert caught.tb is not None
    assert _started() == []


def test_a_spawned_process_reads_the_same_and_never_touches_cuda(folder):
    task = as_task(ConcatDataset([Spy(), as_task(folder)]))
    expected = torch.cat([batch.images for batch in batches(task, range(6), SMALL, batch_size=3)])
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        got = _all(task, range(6), SMALL, batch_size=3, num_workers=1)
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert torch.equal(torch.cat([batch.images for batch in got]), expected)
    assert got[0].labels[:2].tolist() == [0, 0]  # what Spy saw


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=["python", "torch", "system", "handles", "disk"],
)
def test_batches_do_not_skip_images_for_lack_of_memory_or_handles_or_disk(error):
    task = as_task(Given((_image(), 0), error, (_image(), 1)))
    with pytest.raises((MemoryError, OSError), match=r"batches: .*image 1"):
        _all(task, range(3), None, batch_size=2, on_error="skip")


def test_batches_need_more_memory_than_there_is():
    with pytest.raises(
        MemoryError, match=r"expected memory for image 0, got none .*; close other programs, or take smaller"
    ):
        _all(as_task(Given((_image(), 0))), [0], Preprocess(10**7, 10**7), batch_size=1, on_error="skip")


def test_batches_count_none_as_an_image_that_cannot_be_read():
    task = as_task(Given((_image(), 0), None, (None, 1), (_image(), 1)))
    skipped = []
    (batch,) = _all(task, range(4), None, batch_size=4, on_error="skip", skipped=skipped)
    assert batch.index.tolist() == [0, 3]
    assert [failure.where for failure in skipped] == ["image 1", "image 2"]
    with pytest.raises(ValueError, match="got image 1: Task: expected an image from the data set, got None"):
        _all(task, range(4), None, batch_size=4)


def test_batches_look_for_all_files_before_they_read_one(folder):
    task = as_task(folder)
    (folder / "dogs" / "8.png").unlink()
    (folder / "dogs" / "9.png").unlink()
    with pytest.raises(ValueError, match=r"to exist, got 2 of 10 that do not: dogs/8.png, dogs/9.png .*--skip-unread"):
        batches(task, range(10), SMALL, batch_size=2)
    skipped = []
    _all(task, range(10), SMALL, batch_size=4, on_error="skip", skipped=skipped)
    assert [failure.index for failure in skipped] == [8, 9]
    assert len(_all(task, range(8), SMALL, batch_size=4)) == 2
