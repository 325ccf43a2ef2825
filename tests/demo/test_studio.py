import numpy as np
import pytest

from task2vec_ext.demo import studio as module
from task2vec_ext.demo.studio import TRAINED, TRAINING_DIGITS, UNSEEN, Studio

KINDS = [kind for split in (TRAINED, UNSEEN) for kinds in split.values() for kind in kinds]


def test_trained_and_unseen_kinds_are_disjoint():
    assert len(set(KINDS)) == len(KINDS)
    assert set(TRAINED) == set(UNSEEN)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_images_that_show_something(kind):
    studio = Studio(0)
    images = np.stack([studio.image(kind) for _ in range(4)]).astype(float)
    assert len(np.unique(images, axis=0)) == 4
    assert images.std(axis=(1, 2)).max() > 0.5  # the sky is nearly, but not quite, of one colour
    assert 2 < images.mean() < 253


def test_hardly_any_kind_is_lost_without_its_colours():
    studio, flat = Studio(1), []
    for kind in KINDS:
        grey = np.stack([studio.image(kind).mean(2) for _ in range(4)])
        if np.median(grey.std(axis=(1, 2))) < 6:
            flat.append(kind)
    assert set(flat) <= {"sky", "water", "leaf", "backdrop"}


@pytest.mark.parametrize("count", range(1, 7))
def test_dots_can_be_counted(count):
    from scipy.ndimage import label

    studio = Studio(count)
    for _ in range(10):
        image = studio.image(f"dots {count}").astype(int).sum(2)
        values, shares = np.unique(image, return_counts=True)
        ink = np.abs(image - values[shares.argmax()]) > np.ptp(image) / 2  # paper: the commonest
        assert label(ink)[1] == count


def test_training_digits_and_demo_digits_are_disjoint(monkeypatch):
    dealt = []
    monkeypatch.setattr(module, "_write", lambda digit, rng: dealt.append(digit.tobytes()) or digit)
    images = module.digits()["digit 3"]
    for training, count in ((True, 2 * TRAINING_DIGITS), (False, len(images) - TRAINING_DIGITS)):
        studio = Studio(0, training=training)
        for _ in range(count):
            studio.image("digit 3")
    training_digits, demo_digits = dealt[: 2 * TRAINING_DIGITS], dealt[2 * TRAINING_DIGITS :]
    assert len(set(training_digits)) == TRAINING_DIGITS
    assert len(set(demo_digits)) == len(demo_digits)
    assert not set(training_digits) & set(demo_digits)


def test_asking_for_more_digits_than_there_are_is_refused():
    studio = Studio(0)
    for _ in range(len(module.digits()["digit 3"]) - TRAINING_DIGITS):
        studio.image("digit 3")
    with pytest.raises(ValueError, match=r"demo: expected .*digit 3.*; ask for fewer"):
        studio.image("digit 3")
