"""Every image's Fisher is under a head that was fitted without it: against heads that are fitted one by one."""

import pytest
import torch
from cases import assert_near
from small import Blobs, small_probe

from task2vec_ext import fisher_embed
from task2vec_ext._util.warnings import Task2VecWarning
from task2vec_ext.data import Batch
from task2vec_ext.fisher import HeadSettings, fit_cross_fit_head, fit_head, per_sample_fisher
from task2vec_ext.fisher.folds import IN_ALL
from task2vec_ext.losses import CrossEntropy, Dense, MultiLabel, Regression

N = 40
L2 = 1e-2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(classes=3):
    return torch.arange(N) % classes


def cells():
    targets = (random(N, 2, 2, seed=1) > 0).long()
    return targets.masked_fill(random(N, 2, 2, seed=2) > 0.5, -1)


CASES = {  # features, targets, outputs, loss
    "classes": (random(N, 6), labels(), 3, CrossEntropy(label_smoothing=0.1)),
    "labels": (random(N, 6), (random(N, 4, seed=1) > 0.7).float(), 4, MultiLabel()),
    "numbers": (random(N, 6), random(N, 2, seed=1).double(), 2, Regression(noise="residual")),
    "dense": (random(N, 2, 2, 6), cells(), 2, Dense()),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def fitted(features, targets, outputs, loss, settings=HeadSettings(l2=L2)):  # noqa: B008 - frozen
    return fit_cross_fit_head(features, targets, outputs, torch.arange(len(features)) + 5, loss, settings, 0)


def test_every_image_has_the_head_that_is_fitted_to_the_other_folds(case):
    features, targets, outputs, loss = case
    heads = fitted(*case)
    fold = heads.fold[5:]
    assert_near(heads.whole.weight, fit_head(features, targets, outputs, loss=loss, l2=L2).weight, 1e-9)
    index = torch.tensor([13, 5, 44, 30, 21])  # in another order than that of the folds
    own = heads.of(index)
    logits, cotangents = own.logits(features[index - 5]), random(*own.logits(features[index - 5]).shape).double()
    pulled = own.pull(cotangents)
    for row, image in enumerate((index - 5).tolist()):
        other = fold != fold[image] if fold[image] != IN_ALL else torch.ones(N, dtype=torch.bool)
        expected = fit_head(features[other], targets[other], outputs, loss=loss, l2=L2)
        assert_near(logits[row], expected.logits(features[image]), 1e-5)
        assert_near(pulled[row], expected.pull(cotangents[row]), 1e-5)


def test_score_nll_and_noise_are_those_of_images_that_a_head_has_not_seen(case):
    features, targets, _, loss = case
    heads = fitted(*case)
    unseen = heads.fold[5:] != IN_ALL
    logits, rows = loss.rows(heads.of(torch.arange(N) + 5).logits(features)[unseen], targets[unseen])
    judged = loss.fitted(logits, rows)
    assert heads.loss == judged
    assert (heads.score, heads.nll) == (
        pytest.approx(judged.score(logits, rows)),
        pytest.approx(judged.nll(logits, rows)),
    )
    assert heads.nll > heads.whole.nll  # these features tell nothing of the targets


def test_balance_and_adam_go_with_it():
    features, targets, outputs, loss = CASES["classes"]
    targets = targets.where(torch.arange(N) % 5 != 0, 0)
    heads = fitted(features, targets, outputs, loss, HeadSettings(l2=L2, class_balanced=True))
    other = heads.fold[5:] != 2
    expected = fit_head(features[other], targets[other], outputs, loss=loss, l2=L2, class_balanced=True)
    assert_near(heads.folds[2].weight, expected.weight, 1e-5)
    heads = fitted(features, targets, outputs, CrossEntropy(), HeadSettings(method="adam"))
    other = heads.fold[5:] != 2
    expected = fit_head(features[other], targets[other], outputs, method="adam")
    assert torch.equal(heads.folds[2].weight, expected.weight)


def test_the_embedding_is_the_mean_of_the_per_sample_fisher_under_each_images_own_head():
    probe, blobs = small_probe(), Blobs()
    with torch.no_grad():
        z = probe.features(blobs.images)
    heads = fit_cross_fit_head(z, blobs.targets, 3, torch.arange(24), CrossEntropy(), HeadSettings(), 0)
    batch = Batch(torch.arange(24), blobs.images, blobs.targets)
    for estimator in ("signed", "exact", "empirical", "sampled"):
        embedding = fisher_embed(blobs, probe, estimator=estimator, batch_size=7, progress=False)
        rows = torch.empty(24, len(embedding), dtype=torch.float64)
        for k in range(5):
            some = heads.fold == k
            part = Batch(*(field[some] for field in batch))
            rows[some] = per_sample_fisher(probe, probe.layers(), heads.folds[k], part, estimator)
        assert_near(embedding.fisher, rows.mean(0), 1e-4)
    assert embedding.head.held_out_score == heads.score
    assert embedding.head.held_out_nll == pytest.approx(heads.nll, rel=1e-4)
    assert embedding.head.nll == pytest.approx(heads.whole.nll, rel=1e-4)
    assert (embedding.head.best_nll, embedding.head.protocol) == (embedding.head.held_out_nll, "held-out")


def test_an_only_image_of_a_class_is_counted_and_reported():
    class Lonely(Blobs):
        def __init__(self):
            super().__init__()
            self.targets = torch.cat([self.targets[:-1], torch.tensor([3])])

    with pytest.warns(Task2VecWarning, match="got 1 of 24 images that are the only ones with a class"):
        embedding = fisher_embed(Lonely(), small_probe(), progress=False)
    assert embedding.head.num_not_held_out == 1


def test_two_images_of_two_classes_are_their_own_heads_and_said_to_be():
    class Two(Blobs):
        def __init__(self):
            super().__init__(2)
            self.targets = torch.tensor([0, 1])

    with pytest.warns(Task2VecWarning, match="got 2 of 2 images"):
        embedding = fisher_embed(Two(), small_probe(), progress=False)
    assert (embedding.head.held_out_score, embedding.head.protocol) == (None, "in-sample")
