import math

import pytest
import torch
from synthetic import groups_of

from task2vec_ext.jackknife import (
    Estimate,
    covariance,
    estimate,
    half_samples,
    halved,
    side,
    t_quantile,
)


def rows_of(n, k=5, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jackknifed(statistic, *groups) -> Estimate:
    means = [one.mean for one in groups]
    value = statistic(*means)
    sides = []
    for i, one in enumerate(groups):
        without = [statistic(*means[:i], left, *means[i + 1 :]) for left in one.without()]
        sides.append(side(value, torch.stack(without), one.sizes))
    halves = [statistic(*means) for means in halved(groups)]
    return estimate(value, sides, torch.stack(halves).mean(0))


@pytest.mark.parametrize(("n", "groups"), [(1, 1), (9, 8), (31, 16), (32, 32), (50, 32), (96, 32)])
def test_groups_hold_and_leave_out_what_they_say(n, groups):
    rows = rows_of(n)
    found = groups_of(rows)
    assert (len(found.sizes), found.sizes.sum()) == (groups, n)
    assert found.sizes.tolist() == [len(rows[g::groups]) for g in range(groups)]
    if groups > 1:
        for g, left in enumerate(found.without()):
            assert torch.allclose(left, rows[torch.arange(n) % groups != g].mean(0), atol=1e-6)


@pytest.mark.parametrize("groups", [8, 16, 32])
def test_halves_are_halves_with_their_complements_and_balanced(groups):
    halves = half_samples(groups)
    first, second = halves.chunk(2)
    assert (halves.sum(1) == groups // 2).all()
    assert (first ^ second).all()
    together = halves.double().T @ halves.double()
    apart = together[~torch.eye(groups, dtype=torch.bool)]
    assert (apart == apart[0]).all()


def test_one_image_a_group_gives_the_textbook_standard_error_of_a_mean():
    rows = rows_of(16)
    found = jackknifed(lambda mean: mean, groups_of(rows))
    assert torch.allclose(found.standard_error, rows.std(0) / 4, rtol=1e-5)
    assert found.bias.abs().max() < 1e-6
    assert torch.allclose(found.freedom, torch.tensor(15.0).double())


@pytest.mark.parametrize("n", [40, 50, 96])
def test_the_variance_of_a_mean_is_unbiased_for_equal_and_unequal_groups_within_4_standard_errors(n):
    sums = jackknifed(lambda mean: mean.view(600, 5).sum(1), groups_of(rows_of(n, 600 * 5)))  # 600 draws, side by side
    draws = sums.standard_error**2
    true = 5 / 12 / n
    assert abs(draws.mean() - true) < 4 * draws.std() / 600**0.5


def test_the_bias_of_a_square_is_the_means_variance():
    """E x̄² = (E x)² + Var x̄: what halves add to the first order has to be nothing for a quadratic."""
    rows = rows_of(32)
    found = jackknifed(lambda mean: mean @ mean, groups_of(rows))
    assert float(found.bias) == pytest.approx(float(rows.var(0).sum() / 32), rel=1e-4)


def test_a_bias_that_levels_off_is_removed_where_the_first_order_falls_short():
    """θ(N) = 0.3 + 4/(N + 20), the law that the correction assumes, in the limit of many groups."""
    n, groups = 100, 1000
    law = lambda images: torch.tensor(0.3 + 4 / (images + 20), dtype=torch.float64)  # noqa: E731
    sizes = torch.full((groups,), n / groups, dtype=torch.float64)
    without = law(n - n / groups).expand(groups)
    found = estimate(law(n), [side(law(n), without, sizes)], law(n / 2))
    assert float(found.corrected) == pytest.approx(0.3, abs=1e-4)
    assert float(found.standard_error) == pytest.approx(4 / 120 - 4 * 100 / 120**2, abs=1e-4)  # the second order alone


def test_two_tasks_errors_add_and_their_freedom_is_welchs():
    a, b = groups_of(rows_of(64, seed=1)), groups_of(rows_of(16, seed=2))
    both = jackknifed(lambda x, y: x.sum() - y.sum(), a, b)
    va, vb = (jackknifed(torch.sum, one).standard_error ** 2 for one in (a, b))
    assert float(both.standard_error**2) == pytest.approx(float(va + vb), rel=1e-9)
    assert float(both.freedom) == pytest.approx(float((va + vb) ** 2 / (va**2 / 31 + vb**2 / 15)), rel=1e-9)


def test_covariance_has_the_variances_on_its_diagonal_and_sees_what_moves_alike():
    groups = groups_of(rows_of(50))
    pair = lambda mean: torch.stack([mean[0], -mean[0], mean[1]])  # noqa: E731
    value, without = pair(groups.mean), torch.stack([pair(left) for left in groups.without()])
    found = covariance(value, without, groups.sizes)
    assert torch.allclose(found.diagonal(), side(value, without, groups.sizes).variance)
    assert torch.allclose(found[0, 1], -found[0, 0])


@pytest.mark.parametrize("freedom", [7, 12, 31, 62.5])
def test_t_quantile_agrees_with_scipy(freedom):
    from scipy.stats import t

    for probability in (0.9, 0.975, 0.999):
        ours = float(t_quantile(probability, torch.tensor(float(freedom), dtype=torch.float64)))
        assert ours == pytest.approx(t.ppf(probability, freedom), rel=1e-3)


def test_an_interval_on_the_log_scale_is_symmetric_in_proportion():
    one = torch.tensor(1.0, dtype=torch.float64)
    low, high = Estimate(2 * one, 0.5 * one, 0 * one, 31 * one, log=True).interval()
    assert float(low * high) == pytest.approx(4)
    assert float(high) == pytest.approx(2 * math.exp(2.0395 * 0.25), rel=1e-4)
    with pytest.raises(ValueError, match="a confidence between 0 and 1, got 95"):
        Estimate(one, one, one, one).interval(95)


def test_what_does_not_depend_on_the_images_has_no_error():
    found = jackknifed(lambda mean: mean.sum() * 0 + 1, groups_of(rows_of(40)))
    assert (found.standard_error, found.bias) == (0, 0)
    assert torch.isfinite(torch.stack(found.interval())).all()
