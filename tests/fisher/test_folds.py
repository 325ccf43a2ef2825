import pytest
import torch

from task2vec_ext.fisher.folds import IN_ALL, assign_folds


def of_classes(labels):
    return torch.stack([torch.arange(len(labels)), labels], 1)


def skewed(n=230, classes=12, seed=0):
    shares = torch.linspace(1, 0.02, classes)
    return torch.multinomial(shares, n, replacement=True, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_folds", [2, 5, 10])
def test_folds_agree_in_size_and_in_their_share_of_each_class(num_folds):
    labels = skewed()
    fold = assign_folds(of_classes(labels), torch.arange(230), num_folds, 0)
    held_out = fold != IN_ALL
    sizes = torch.bincount(fold[held_out], minlength=num_folds)
    assert sizes.max() - sizes.min() <= 1
    for c in range(12):
        own = torch.bincount(fold[held_out & (labels == c)], minlength=num_folds)
        assert own.max() - own.min() <= 1
        assert (own.sum() == 0) == ((labels == c).sum() < 2)


@pytest.mark.parametrize("seed", range(20))
def test_no_training_part_lacks_an_answer(seed):
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(9, generator=generator) ** 3
    hot = torch.rand(40, 9, generator=generator) < share
    answers = torch.cat([hot, ~hot], 1).nonzero()
    fold = assign_folds(answers, torch.arange(40), 5, seed)
    for k in range(5):
        assert set(answers[fold[answers[:, 0]] != k, 1].tolist()) == set(answers[:, 1].tolist())
    counts = torch.bincount(answers[:, 1])
    must = answers[counts[answers[:, 1]] == 1, 0].unique()
    assert set(must.tolist()) <= set((fold == IN_ALL).nonzero().flatten().tolist())
    assert (fold == IN_ALL).sum() <= len(must) + 4  # labels of two or three images that met in one fold


def test_the_only_image_of_a_class_is_in_every_training_part():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    fold = assign_folds(of_classes(labels), torch.arange(6), 5, 3)
    assert (fold == IN_ALL).tolist() == [False, False, False, True, False, False]


def test_the_fold_of_an_image_depends_on_seed_and_number_not_on_order_or_on_the_numbers_of_the_classes():
    labels, index = skewed(), torch.randperm(500, generator=torch.Generator().manual_seed(1))[:230]
    fold = assign_folds(of_classes(labels), index, 5, 7)
    order = torch.randperm(230, generator=torch.Generator().manual_seed(2))
    assert torch.equal(assign_folds(of_classes(labels[order]), index[order], 5, 7), fold[order])
    assert torch.equal(assign_folds(of_classes(11 - labels), index, 5, 7), fold)
    assert not torch.equal(assign_folds(of_classes(labels), index, 5, 8), fold)


def test_images_without_an_answer_are_dealt_out_too():
    none = torch.empty(0, 2, dtype=torch.int64)
    sizes = torch.bincount(assign_folds(none, torch.arange(23), 5, 0), minlength=5)
    assert sorted(sizes.tolist()) == [4, 4, 5, 5, 5]
    assert len(assign_folds(none, torch.arange(0), 5, 0)) == 0
    assert sorted(assign_folds(none, torch.arange(3), 5, 0).tolist()) == [0, 1, 2]
