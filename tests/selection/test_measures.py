"""Measures of a choice against SciPy and against counting all ways to break ties."""

import itertools
import math

import numpy as np
import pytest
import torch

from task2vec_ext.selection.measures import chosen_error, hit_rate, spearman, weighted_tau

NAN = math.nan


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("E", [2, 3, 12])
def test_rank_correlations_are_scipy_s(E, ties):
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(E)
    for _ in range(20):
        scores, errors = random.normal(size=E), random.uniform(size=E)
        if ties and E > 3:
            scores, errors = scores.round(), errors.round(1)
        accuracy = 1 - errors
        arguments = torch.from_numpy(scores), torch.from_numpy(errors)
        assert spearman(*arguments) == pytest.approx(stats.spearmanr(scores, accuracy).statistic, abs=1e-12)
        expected = stats.weightedtau(scores, -errors, rank=True).statistic
        assert weighted_tau(*arguments) == pytest.approx(expected, abs=1e-12)


def test_ties_are_the_mean_over_all_ways_to_break_them():
    scores, errors = vector(1, 2, 2, 2, 0, NAN), vector(0.1, 0.3, 0.2, 0.4, 0.5, 0.0)

    def ways(k: int):
        """The k proposed, for every order that the scores allow."""
        for order in itertools.permutations(range(6)):
            ranked = [(-math.inf if math.isnan(scores[i]) else float(scores[i])) for i in order]
            if ranked == sorted(ranked, reverse=True):
                yield order[:k]

    assert chosen_error(scores, errors) == pytest.approx(np.mean([errors[way[0]] for way in ways(1)]))
    for best in range(6):
        truth = torch.where(torch.arange(6) == best, 0.0, errors + 0.01)
        for k in range(1, 7):
            assert hit_rate(scores, truth, k) == pytest.approx(np.mean([best in way for way in ways(k)]))


def test_equal_scores_are_chance():
    errors = vector(0.1, 0.2, 0.6, NAN)
    equal = torch.zeros(4)
    assert chosen_error(equal, errors) == pytest.approx(0.3)
    assert hit_rate(equal, errors, 1) == pytest.approx(1 / 3)
    assert math.isnan(spearman(equal, errors))
    assert math.isnan(weighted_tau(equal, errors))


def test_what_is_not_measured_or_not_scored_is_not_chosen():
    assert chosen_error(vector(5, NAN, 1), vector(NAN, 0.1, 0.4)) == 0.4
    assert math.isnan(chosen_error(vector(5, NAN), vector(NAN, 0.1)))
    assert math.isnan(hit_rate(vector(NAN, NAN), vector(0.2, 0.1), 1))
    assert hit_rate(vector(1, NAN, 2), vector(0.2, 0.1, NAN), 1) == 0
    assert spearman(vector(NAN, 1, 2), vector(0.9, 0.5, 0.1)) == 1
    assert weighted_tau(vector(NAN, 1, 2), vector(0.9, 0.5, 0.1)) == pytest.approx(1)
    assert hit_rate(vector(1), vector(0.2), 3) == 1
