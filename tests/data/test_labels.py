import numpy as np
import pytest
import torch

from task2vec_ext.data import check_labels, draw


@pytest.mark.parametrize(
    "labels",
    [
        [0, 2, 1, 1],
        (np.int64(0), np.uint8(2), torch.tensor(1), np.array(1)),
        np.array([0, 2, 1], np.uint16),
        torch.tensor([0, 2, 1], dtype=torch.uint8),
    ],
    ids=["list", "mixed", "array", "tensor"],
)
def test_check_labels_counts_the_classes(labels):
    assert check_labels(labels, who="me") == 3


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([], ValueError, "a task with images, got an empty one"),
        ([3, 3], ValueError, r"at least two classes, got one \(every image has label 3\)"),
        ([0, 1, -1, -2], ValueError, "got -1 at index 2"),
        ([0, 2, 4], ValueError, r"every label 0…4 to occur, got no image with 1, 3 \(2 missing\)"),
        ([9, 10], ValueError, r"got no image with 0, 1, 2, 3, 4, … \(9 missing\)"),
        ([0, 1, 10**12], ValueError, r"got no image with 2, 3, 4, 5, 6, … \(999999999998 missing\)"),
        ([0, "cat"], TypeError, r"got 'cat' \(str\) at index 1"),
        ([0, 1.0], TypeError, r"got 1.0 \(float\) at index 1"),
        ([0, True], TypeError, r"got True \(bool\) at index 1"),
        ([0, np.bool_(True)], TypeError, "at index 1"),
        ([0, None], TypeError, r"got None \(NoneType\) at index 1"),
        ([0, torch.tensor([1, 0])], TypeError, "at index 1"),
        (np.array([0.0, 1.0]), TypeError, "at index 0"),
        (torch.tensor([True, False]), TypeError, "at index 0"),
        (torch.tensor([[0], [1]]), ValueError, r"labels of shape \[N\], got \[2, 1\]"),
    ],
    ids=str,
)
def test_check_labels_names_what_is_wrong(labels, error, message):
    with pytest.raises(error, match=f"^me: expected .*{message}.*; "):
        check_labels(labels, who="me")


def _per_class(labels, indices):
    return torch.tensor(labels)[indices].bincount(minlength=max(labels) + 1).tolist()


@pytest.mark.parametrize(
    ("counts", "num_samples", "expected"),
    [
        ([10, 10, 10], 6, [2, 2, 2]),
        ([50, 30, 20], 10, [5, 3, 2]),
        (
            [60, 25, 15],
            10,
            [6, 3, 1],
        ),  # 2.5 and 1.5 leave one seat: equal remainders, decided by the seed below
        ([97, 1, 1, 1], 10, [7, 1, 1, 1]),
        ([1000, 10, 10], 3, [1, 1, 1]),
        ([7, 5], 11, [6, 5]),
        ([1, 1], 2, [1, 1]),
    ],
    ids=str,
)
def test_draw_divides_in_proportion_with_one_each_at_least(counts, num_samples, expected):
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    allowed = [expected, [6, 2, 2]] if counts == [60, 25, 15] else [expected]
    seen = []
    for seed in range(20):
        indices = draw(labels, num_samples, seed)
        assert indices.dtype == torch.int64
        assert indices.tolist() == sorted(set(indices.tolist()))
        seen.append(_per_class(labels, indices))
        assert seen[-1] in allowed
    assert all(one in seen for one in allowed)


@pytest.mark.parametrize(
    ("counts", "num_samples", "expected"),
    [([60, 25, 15], 30, [10, 10, 10]), ([60, 25, 3], 30, [14, 13, 3]), ([9, 2, 1], 11, [8, 2, 1]), ([5, 5], 2, [1, 1])],
    ids=str,
)
def test_a_balanced_draw_takes_equally_many_of_each_as_far_as_they_go(counts, num_samples, expected):
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    assert _per_class(labels, draw(labels, num_samples, 0, balanced=True)) == expected


def test_draw_always_gives_the_number_asked_for():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        counts = torch.randint(1, 40, (8,), generator=generator)
        labels = torch.arange(8).repeat_interleave(counts)
        for num_samples in (8, 9, 17, 50):
            indices = draw(labels, num_samples, 1)
            assert len(indices) == min(num_samples, len(labels))
            share = num_samples * counts / len(labels)
            taken = labels[indices].bincount(minlength=8)
            assert (taken >= 1).all()
            assert (taken <= counts).all()
            assert (taken <= share.ceil().clamp(min=1)).all()


def test_draw_is_decided_by_the_seed_and_not_by_the_numbering_of_the_classes():
    labels = torch.arange(5).repeat(23)[:111]
    assert torch.equal(draw(labels, 33, 4), draw(labels, 33, 4))
    assert not torch.equal(draw(labels, 33, 4), draw(labels, 33, 5))
    renumbered = torch.tensor([3, 0, 4, 1, 2])[labels]
    assert torch.equal(draw(labels, 33, 4), draw(renumbered, 33, 4))


def test_draw_gives_every_image_of_a_class_the_same_chance():
    labels = torch.tensor([0, 1] * 10)
    hits = torch.zeros(20)
    for seed in range(2000):
        hits[draw(labels, 4, seed)] += 1
    # 2 of 10 in 2,000 draws: 400 ± 17.9; five standard errors.
    assert (hits - 400).abs().max() < 5 * 17.9


def test_draw_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    draw([0, 1, 1], 2, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_samples", [None, 3, 100])
def test_draw_takes_all_images_of_a_small_task(num_samples):
    assert draw([1, 0, 1], num_samples, 0).tolist() == [0, 1, 2]


def test_draw_refuses_fewer_samples_than_classes():
    with pytest.raises(ValueError, match="each of the 3 classes, got 2; raise it or pass None"):
        draw([0, 1, 2, 2], 2, 0)
