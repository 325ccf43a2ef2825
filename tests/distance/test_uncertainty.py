"""Error bars of embeddings and distances, against a known law of the images' own Fisher."""

import dataclasses
import typing

import pytest
import torch
from small import Blobs, small_probe
from synthetic import task_of

from task2vec_ext import (
    Reference,
    cross_distances,
    distance_matrix,
    fisher_embed,
    neighbour_ranks,
    norm_with_error,
    relative_error,
    with_error,
)
from task2vec_ext.data import Batch
from task2vec_ext.fisher.head import HeadSettings, fit_head
from task2vec_ext.fisher.per_sample import sum_fisher
from task2vec_ext.settings import EmbedSettings
from task2vec_ext.words import DistanceName


def embeddings(count, **how):
    return [task_of(seed, **how)[0] for seed in range(1, count + 1)]


def d_sym(a, b):
    r, q = a / (a + b), b / (a + b)
    return 1 - (r * q).sum() / (r.square().sum() * q.square().sum()).sqrt()


@pytest.mark.parametrize("distance", typing.get_args(DistanceName))
def test_distance_matrix_with_error_equals_the_jackknife_of_each_pair(distance):
    tasks = [task_of(1)[0], task_of(2, n=50)[0], task_of(3, n=20)[0]]
    how = {"reference": Reference.of(embeddings(10))} if distance == "library_correlation" else {}
    found = distance_matrix(tasks, distance, with_error=True, **how)
    assert torch.equal(found.value, distance_matrix(tasks, distance, **how))

    def one(a, b):
        pair = [
            dataclasses.replace(task, fisher=f, group_means=None) for task, f in zip(tasks[:2], (a, b), strict=True)
        ]
        return cross_distances(pair[:1], pair[1:], distance, **how)[0, 0]

    pair = with_error(one, *tasks[:2])
    for part in ("value", "standard_error", "bias", "freedom"):
        assert float(getattr(found, part)[0, 1]) == pytest.approx(float(getattr(pair, part)), rel=1e-5, abs=1e-9), part
    if "asym" not in distance:
        assert torch.allclose(found.standard_error, found.standard_error.T)
        assert found.standard_error.diagonal().abs().max() == 0
        assert (found.standard_error[0, 1:] > 0).all()


def test_the_error_of_asym_to_oneself_is_that_of_the_distance_to_the_trivial_task():
    tasks = embeddings(2)
    found = distance_matrix(tasks, "asym", with_error=True)
    own = with_error(lambda fisher: -0.15 * d_sym(fisher, tasks[0].prior), tasks[0])
    assert float(found.standard_error[0, 0]) == pytest.approx(float(own.standard_error), rel=1e-4)


def test_the_jackknife_agrees_with_the_gradient_where_noise_is_small():
    """The delta method: the gradient of d_sym times the groups' deviations, one linear form a pair."""
    a, b = (task_of(seed, n=3200, noise=0.3)[0] for seed in (1, 2))
    variance = 0.0
    for one, other in ((a, b), (b, a)):
        fisher = one.fisher.clone().requires_grad_()
        d_sym(fisher, other.fisher).backward()
        linear = (one.group_means - one.fisher).double() @ fisher.grad
        variance += float(linear.square().sum()) / (32 * 31)
    found = distance_matrix([a, b], with_error=True)
    assert float(found.standard_error[0, 1]) == pytest.approx(variance**0.5, rel=0.01)


@pytest.fixture(scope="module")
def draws():
    """300 draws of two tasks and again of the first one: its norm, and the distances."""
    found = []
    for twin in range(300):
        tasks = [task_of(seed, n=64, twin=draw)[0] for seed, draw in ((1, twin), (2, twin), (1, twin + 5000))]
        found.append((norm_with_error(tasks[0]), distance_matrix(tasks, with_error=True)))
    return found


def test_intervals_of_norm_and_distance_cover_the_truth(draws):
    """300 draws: 95 % ± 1.3 %; from 90 to 98.5 % is within four standard errors of the nominal below, of 2.8 above."""
    truth, other = task_of(1)[1], task_of(2)[1]
    hits = torch.zeros(3)
    for norm, distances in draws:
        norms, (low, high) = norm.interval(), distances.interval()
        hits[0] += float(norms[0] <= truth.sum() <= norms[1])
        hits[1] += float(low[0, 1] <= d_sym(truth, other) <= high[0, 1])
        hits[2] += float(low[0, 2] <= 0 <= high[0, 2])
    assert (hits / 300 >= 0.90).all(), hits
    assert (hits[:2] / 300 <= 0.985).all(), hits  # the third's truth is the least a distance can be: more is right


def test_noise_inflates_distances_and_the_corrected_distance_of_two_halves_of_one_task_is_zero(draws):
    values, corrected = (
        torch.tensor([float(getattr(distances, part)[0, 2]) for _, distances in draws])
        for part in ("value", "corrected")
    )
    assert values.mean() > 20 * values.std() / 300**0.5  # 0.005: surely not 0 without
    assert abs(corrected.mean()) < 0.1 * values.mean()
    assert abs(corrected.mean()) < 5 * corrected.std() / 300**0.5  # 5 standard errors


def test_two_disjoint_halves_of_one_task_under_one_head_are_at_distance_zero():
    blobs, probe = Blobs(n=256), small_probe()
    one_head = EmbedSettings(head=HeadSettings(cross_fit=None))
    whole = fisher_embed(blobs, probe, settings=one_head, progress=False)
    head = fit_head(probe.features(blobs.images).detach(), blobs.targets, 3)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    halves = []
    for half in order.chunk(2):
        batch = Batch(half, blobs.images[half], blobs.targets[half])
        found = sum_fisher(probe, probe.layers(), head, [batch])
        changes = {"fisher": found.mean, "group_means": found.groups.means.float(), "num_samples": 128}
        halves.append(dataclasses.replace(whole, **changes))
    found = distance_matrix(halves, with_error=True)
    low, high = (float(end[0, 1]) for end in found.interval())
    assert low < 0 < high < float(found.value[0, 1])


def test_errors_are_wider_where_heads_are_cross_fitted_on_each_draw():
    plain = [task_of(seed, n=3200, noise=0.3)[0] for seed in (1, 2)]
    crossed = [dataclasses.replace(task, settings=EmbedSettings()) for task in plain]
    for of in (lambda tasks: norm_with_error(tasks[0]), lambda tasks: distance_matrix(tasks, with_error=True)):
        before, after = (of(tasks) for tasks in (plain, crossed))
        assert torch.equal(after.value, before.value)
        size = before.value.shape[:1] and (0, 1)
        assert float(after.standard_error[size] / before.standard_error[size]) == pytest.approx(1.2, rel=0.01)
    # Linear in the variance, up to higher orders.
    ratio = after.bias[0, 1] / before.bias[0, 1]
    assert float(ratio) == pytest.approx(1.2**2, rel=0.02)
    assert crossed[0].groups.norm_error() == pytest.approx(1.2 * plain[0].groups.norm_error())
    assert relative_error(crossed[0]) == relative_error(plain[0])


def test_the_relative_error_is_what_the_embedding_is_off_by():
    estimated, actual = [], []
    for twin in range(200):
        task, truth = task_of(1, n=64, twin=twin)
        estimated.append(relative_error(task) ** 2)
        actual.append(float((task.fisher - truth).square().sum() / truth.square().sum()))
    estimated, actual = torch.tensor(estimated), torch.tensor(actual)
    # Relative to F, not to the truth, and both are noisy: within 5 standard errors.
    error = ((estimated.var() + actual.var()) / 200).sqrt()
    assert abs(estimated.mean() - actual.mean()) < 5 * error


def test_ranks_are_sure_where_distances_are_far_apart_and_open_where_they_are_not():
    target = task_of(1)[0]
    twins = [task_of(1, twin=twin)[0] for twin in (1, 2)]
    far = task_of(2)[0]
    ranks = neighbour_ranks([far, *twins, target], 3)
    assert ranks.rank.tolist()[0] == 3
    assert sorted(ranks.rank.tolist()) == [0, 1, 2, 3]
    assert (ranks.low.tolist(), ranks.high.tolist()) == ([3, 1, 1, 0], [3, 2, 2, 0])
    with pytest.raises(ValueError, match="a target in 0…3, got 4"):
        neighbour_ranks([far, *twins, target], 4)


def test_what_has_no_error_bars_is_named():
    task = task_of(1)[0]
    without = dataclasses.replace(task, group_means=None, name="old")
    with pytest.raises(ValueError, match="expected embeddings with error bars, got 'old'"):
        distance_matrix([task, without], with_error=True)
    for function in (relative_error, norm_with_error):
        with pytest.raises(ValueError, match="with 8 images or more"):
            function(without)
    with pytest.raises(TypeError, match="a plain tensor has no error bars"):
        distance_matrix(torch.ones(2, 3), with_error=True)


def test_fisher_embed_keeps_groups_of_random_images():
    blobs, probe = Blobs(n=80), small_probe()
    found = fisher_embed(blobs, probe, progress=False)
    assert found.group_means.shape == (32, len(found))
    assert 0 < relative_error(found) < 1
    assert fisher_embed(Blobs(n=7), probe, progress=False).group_means is None
    few = fisher_embed(Blobs(n=9), probe, progress=False)
    assert len(few.group_means) == 8
    # In random order: another seed deals other images, even where no noise differs.
    one_head = EmbedSettings(estimator="exact", head=HeadSettings(cross_fit=None))
    exact = [fisher_embed(blobs, probe, settings=one_head, seed=seed, progress=False) for seed in (0, 1)]
    assert torch.allclose(exact[0].fisher, exact[1].fisher, rtol=1e-3)
    assert not torch.allclose(exact[0].group_means, exact[1].group_means, rtol=0.1)


def test_rel_error_stops_when_sure_enough_and_says_how_many_it_took():
    blobs, probe = Blobs(n=600), small_probe()
    found = fisher_embed(blobs, probe, rel_error=0.3, progress=False)
    assert found.num_samples < 600
    assert found.num_samples % 32 == 0
    assert relative_error(found) <= 0.3
    assert found.settings.rel_error == 0.3
    whole = fisher_embed(blobs, probe, progress=False)
    assert found.head == whole.head  # fitted to all of them
    assert (found.fisher - whole.fisher).norm() < 3 * 0.3 * whole.fisher.norm()  # three of its standard errors
    other = fisher_embed(blobs, probe, rel_error=0.3, batch_size=7, progress=False)
    assert other.num_samples == found.num_samples
    assert torch.allclose(other.fisher, found.fisher, rtol=1e-5)


def test_rel_error_out_of_reach_warns_and_bad_ones_are_refused():
    from task2vec_ext import Task2VecWarning

    probe = small_probe()
    with pytest.warns(Task2VecWarning, match="at most 0.001, 'Blobs' came to .* after all 90") as told:
        found = fisher_embed(Blobs(n=120), probe, rel_error=0.001, num_samples=90, progress=False)
    assert found.num_samples == 90
    assert told[0].filename == __file__
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="rel_error > 0"):
            fisher_embed(Blobs(), probe, rel_error=value, progress=False)
