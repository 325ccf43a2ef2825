import numpy as np
import pytest
import torch
from PIL import Image

from task2vec_ext import Task2VecWarning, as_task
from task2vec_ext.data import Preprocess, batches, subset, tasks_from, union

SMALL = Preprocess(12, 10)


def deep(white, mode="I;16", n=8, kind="pil"):
    """Images whose values end at `white`, in 16 or 32 bits."""
    generator = np.random.default_rng(0)
    arrays = [
        generator.integers(0, white + 1, (9, 9)).astype(np.float32 if mode == "F" else np.uint16) for _ in range(n)
    ]
    for array in arrays:
        array[0, 0] = white
    if mode == "I":
        return [(Image.fromarray(array.astype(np.int32)), i % 2) for i, array in enumerate(arrays)]
    if kind == "tensor":
        return [(torch.from_numpy(array.astype(np.int32)), i % 2) for i, array in enumerate(arrays)]
    return [(Image.fromarray(array), i % 2) for i, array in enumerate(arrays)]


def read(task, **options):
    return torch.cat([b.images for b in batches(as_task(task), range(len(task)), SMALL, batch_size=3, **options)])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("white", "mode", "kind", "bits"),
    [
        (4095, "I;16", "pil", 12),
        (1023, "I;16", "pil", 10),
        (255, "I;16", "pil", 8),
        (4095, "I", "pil", 12),
        (255, "I", "pil", 8),
        (4095, "I", "tensor", 12),
    ],
    ids=str,
)
def test_values_of_fewer_bits_than_their_files_are_refused_until_white_is_named(white, mode, kind, bits, num_workers):
    task = deep(white, mode, kind=kind)
    with pytest.raises(ValueError, match=rf"in 8 images of 'list'; if they have {bits} bits, say max_value={white} "):
        read(task, num_workers=num_workers, on_error="skip")
    # As 16-bit values that use their range.
    named = as_task(task, max_value=white)
    expected = [torch.from_numpy(np.asarray(image).astype(np.float32) / np.float32(white)) for image, _ in task]
    assert torch.equal(read(named), torch.stack([SMALL(image.expand(3, -1, -1).contiguous()) for image in expected]))
    dark = as_task(task, max_value=65535)
    assert read(dark).shape == (8, 3, 10, 10)
    assert float(dark[0][0].max()) == pytest.approx(white / 65535)


def test_values_that_use_their_range_are_taken_as_they_are():
    assert read(deep(65535)).shape == (8, 3, 10, 10)
    assert torch.equal(read(deep(65535)), read(as_task(deep(65535), max_value=65535)))
    assert len(read(deep(4095, n=5))) == 5  # too few to judge


def test_14_bits_are_warned_of():
    with pytest.warns(Task2VecWarning, match=r"at most 25.0% of it in 8 images .* 14 bits, say max_value=16383 "):
        read(deep(16383))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.arange(16).reshape(4, 4), "if they have 4 bits, say max_value=15 "),
        (np.array([[0, 1], [1, 0]]), "if they have 1 bits, say max_value=1 "),
        (np.zeros((4, 4)), "with the value 0 in every pixel"),
    ],
    ids=["4-bit", "binary", "black"],
)
def test_dark_8_bit_images_are_refused(values, message):
    task = [(values.astype(np.uint8), i % 2) for i in range(8)]
    with pytest.raises(ValueError, match=message):
        read(task)
    white = int(values.max()) or 255
    assert float(as_task(task, max_value=white)[0][0].max()) == (values.max() > 0)
    assert len(read(as_task(task, max_value=white))) == 8


def test_the_first_images_are_judged_before_the_others_are_read():
    task = as_task(deep(4095, n=80))
    loaded = batches(task, range(80), SMALL, batch_size=16)
    next(loaded)
    with pytest.raises(ValueError, match="in 32 images"):
        next(loaded)


def test_8_and_16_bit_images_of_one_task_are_judged_apart():
    mixed = deep(4095) + [(Image.effect_noise((9, 9), 90), i % 2) for i in range(8)]
    with pytest.raises(ValueError, match=r"value of white \(65535; .* in 8 images"):
        read(mixed)


def test_white_is_kept_by_files_views_and_digests(tmp_path):
    for i, (image, label) in enumerate(deep(4095)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        image.save(tmp_path / str(label) / f"{i}.png")
    plain, named = as_task(tmp_path), as_task(tmp_path, max_value=4095)
    (listed,) = tasks_from(f"{tmp_path}?max_value=4095")
    assert (
        named.max_value
        == listed.max_value
        == as_task(named, name="x").max_value
        == subset(named, [1]).max_value
        == 4095
    )
    torch.testing.assert_close(named[0][0], plain[0][0] * (65535 / 4095))
    assert torch.equal(subset(named, [0])[0][0], named[0][0])
    assert named.digest() == listed.digest() != plain.digest()
    both = union([named, plain], name="both")
    assert torch.equal(both[0][0], named[0][0])
    assert torch.equal(both[8][0], plain[0][0])
    with pytest.raises(ValueError, match=r"expected a number for max_value in .*, got '12bit'"):
        tasks_from(f"{tmp_path}?max_value=12bit")
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="expected max_value > 0"):
            as_task(tmp_path, max_value=wrong)
