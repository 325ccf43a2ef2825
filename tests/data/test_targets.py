import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from task2vec_ext.data import LabelSet, Mask, Preprocess, Unlabelled, Values, as_task, batches
from task2vec_ext.data.targets import ClassLabel

nan = float("nan")


@pytest.mark.parametrize(
    ("target", "value", "expected"),
    [
        (LabelSet(), torch.tensor([0, 1, -1]), [0, 1, nan]),
        (LabelSet(), np.array([True, False]), [1, 0]),
        (LabelSet(), torch.tensor([0.0, nan, 1.0]), [0, nan, 1]),
        (LabelSet(4), [2, 0], [1, 0, 1, 0]),
        (LabelSet(4), {np.int64(3)}, [0, 0, 0, 1]),
        (LabelSet(2), [], [0, 0]),
        (Values(), 3, [3]),
        (Values(), np.float32(0.5), [0.5]),
        (Values(), (1, 2.5), [1, 2.5]),
        (Values(), torch.tensor([1, 2]), [1, 2]),
        (Mask(), np.array([[0, 255], [3, 1]], np.uint8), [[0, -1], [3, 1]]),
        (Mask(-1), torch.tensor([[[0, -1], [255, 1]]]), [[0, -1], [255, 1]]),
        (Mask(), Image.new("P", (2, 1), 7), [[7, 7]]),
        (Mask(), np.array([[40000]], np.uint16), [[40000]]),
    ],
)
def test_targets_are_read(target, value, expected):
    read = target.read(value, who="me", where="here")
    torch.testing.assert_close(read, torch.tensor(expected, dtype=read.dtype), equal_nan=True)
    assert read.dtype == {LabelSet: torch.float32, Values: torch.float64, Mask: torch.int64}[type(target)]


@pytest.mark.parametrize(
    ("target", "value", "error", "message"),
    [
        (LabelSet(), 3, TypeError, r"multi-hot tensor \[C\] or a list of label indices, got int at here"),
        (LabelSet(), [0, 1], TypeError, r"pass loss=MultiLabel\(num_classes="),
        (LabelSet(3), [3], ValueError, "label indices 0…2, got 3 at here"),
        (LabelSet(3), ["cat"], TypeError, "'cat'"),
        (LabelSet(3), torch.ones(2), ValueError, r"multi-hot tensor \[3\], got \[2\]"),
        (LabelSet(), torch.ones(2, 2), ValueError, r"got \[2, 2\]"),
        (LabelSet(), torch.tensor([0, 2]), ValueError, "expected 0, 1, or −1 .* got 2 at here"),
        (Values(), "1.5", TypeError, "a number or a vector of numbers, got '1.5'"),
        (Values(), None, TypeError, "got None at here"),
        (Values(), torch.ones(1, 2), ValueError, r"a number or a vector \[K\], got \[1, 2\]"),
        (Values(), [1.0, nan], ValueError, "finite target values"),
        (Mask(), 3, TypeError, "expected a mask"),
        (Mask(), torch.ones(2, 2), TypeError, "a mask of integers, got torch.float32"),
        (Mask(), torch.ones(2), ValueError, r"a mask \[H, W\] of class indices, got \[2\]"),
        (Mask(), torch.tensor([[-1, 0]]), ValueError, r"255 \(ignored\) in a mask, got -1 .*Dense\(ignore_index="),
    ],
)
def test_what_is_no_target_is_refused_and_named(target, value, error, message):
    with pytest.raises(error, match=message):
        target.read(value, who="me", where="here")


def test_a_mask_goes_where_its_pixels_go():
    """Regions of constant colour: the image's colour and the mask's class agree wherever both are clear."""
    mask = torch.zeros(30, 50, dtype=torch.int64)
    mask[8:25, 20:41] = 1
    rgb = (mask * 255).to(torch.uint8).expand(3, -1, -1)
    for preprocess in (Preprocess(24, 20, (0, 0, 0), (1, 1, 1)), Preprocess(60, 44, (0, 0, 0), (1, 1, 1))):
        moved, image = preprocess.mask(mask, fill=-1), preprocess(rgb)[0]
        assert moved.shape == image.shape
        clear = (image < 0.02) | (image > 0.98)
        assert torch.equal(moved[clear], (image[clear] > 0.5).long())
        assert clear.float().mean() > 0.7
    centres = Preprocess(2, 2).mask(torch.arange(36).reshape(6, 6), fill=-1)
    assert centres.tolist() == [[7, 10], [25, 28]]
    padded = Preprocess(10, 40).mask(mask, fill=-1)
    assert (padded == -1).float().mean() == 1 - 10 * 16 / 40**2  # 10 × 16 pixels of image


class Pairs(Dataset):
    """A data set, whose targets are read with its images."""

    def __init__(self, pairs):
        self.pairs = list(pairs)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


def loaded(task, target, preprocess=None, **options):
    return list(batches(as_task(task, target=target), range(len(task)), preprocess, batch_size=2, **options))


@pytest.mark.parametrize("workers", [0, 2])
def test_targets_are_batched_with_workers_and_failures_skipped(workers):
    images = [torch.rand(3, 4, 4) for _ in range(5)]
    skipped = []
    task = Pairs(zip(images, [[1.0], [2.0], [nan], [4.0], [5.0]], strict=True))
    got = loaded(task, Values(), num_workers=workers, on_error="skip", skipped=skipped)
    assert torch.cat([batch.labels for batch in got]).tolist() == [[1], [2], [4], [5]]
    assert [failure.index for failure in skipped] == [2]
    assert "finite target values" in skipped[0].reason


def test_targets_in_a_list_are_read_at_once():
    with pytest.raises(ValueError, match=r"as_task: expected finite target values, got .* at index 1"):
        as_task([(torch.rand(3, 4, 4), [1.0]), (torch.rand(3, 4, 4), [nan])], target=Values())


@pytest.mark.parametrize("second", [1, 2], ids=["in-one-batch", "between-batches"])
def test_targets_of_different_lengths_name_both_images(second):
    task = [(torch.rand(3, 4, 4), [1.0] if i < second else [1.0, 2.0]) for i in range(4)]
    with pytest.raises(ValueError, match=rf"targets of one size, got \[1\] for image 0 and \[2\] for image {second}"):
        loaded(task, Values())


def test_masks_from_files_follow_the_preprocessing_and_must_fit_their_images(tmp_path):
    Image.new("RGB", (12, 8), (9, 9, 9)).save(tmp_path / "x.png")
    Image.fromarray(np.eye(8, 12, dtype=np.uint8)).save(tmp_path / "y.png")
    Image.new("L", (8, 12)).save(tmp_path / "turned.png")
    (batch,) = loaded([(tmp_path / "x.png", tmp_path / "y.png")], Mask(), Preprocess(8, 8))
    assert torch.equal(batch.labels[0], torch.eye(8, 12, dtype=torch.int64)[:, 2:10])
    with pytest.raises(ValueError, match=r"a mask as large as its image, \[8, 12\], got \[12, 8\]"):
        loaded([(tmp_path / "x.png", tmp_path / "turned.png")], Mask(), Preprocess(8, 8))


def test_unlabelled_images_come_from_folders_lists_and_data_sets(tmp_path):
    for name in ("b.png", "deep/a.png", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), len(name)).save(tmp_path / name)
    task = as_task(tmp_path, target=Unlabelled())
    assert task.source.names == ("b.png", "deep/a.png")
    paths = [tmp_path / "b.png", tmp_path / "deep" / "a.png"]
    tensors = torch.utils.data.TensorDataset(torch.rand(2, 3, 4, 4))
    for source in (task, paths, [(path, "cat") for path in paths], tensors, [torch.rand(3, 4, 4)] * 2):
        other = as_task(source, target=Unlabelled())
        assert [other.item(i)[1] for i in range(len(other))] == [0, 0]
    with pytest.raises(ValueError, match="expected a folder with images"):
        as_task(tmp_path / "nowhere", target=Unlabelled())


def test_a_task_of_another_target_is_read_anew_and_its_own_is_kept(tmp_path):
    for name in ("cats/a.png", "dogs/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name)
    task = as_task(tmp_path)
    assert as_task(task, target=ClassLabel()) is task
    ages = as_task(task, target=Values())
    assert ages.item(1)[1].tolist() == [1.0]
    assert (ages.labels, ages.classes, ages.name) == (None, None, task.name)


def test_the_digest_sees_every_entry_of_long_targets(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    digests = set()
    for i in range(2):
        hot = torch.zeros(5000)
        hot[2500] = i
        digests.add(as_task([(tmp_path / "a.png", hot)], target=LabelSet()).digest())
    assert len(digests) == 2
