"""Transferability scores against independent implementations: loops, densities, scikit-learn."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from task2vec_ext.selection.transferability import h_score, knn_accuracy, leep, logme, nce, probe_accuracy

EXACT = 1e-10  # float64 sums of a hundred terms, and matrix inverses of condition 1e3


def outputs(N: int = 60, D: int = 7, C: int = 3, apart: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of C noisy classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (N,), generator=generator)
    means = apart * torch.randn(C, D, generator=generator)
    return means[labels] + torch.randn(N, D, generator=generator), labels


def test_leep_is_its_definition_in_loops():
    logits, labels = outputs(D=5)
    theta, y = logits.softmax(1).double().numpy(), labels.numpy()
    given = np.array([[theta[y == c, z].sum() / theta[:, z].sum() for z in range(5)] for c in range(3)])
    expected = np.mean([np.log(sum(given[y[n], z] * theta[n, z] for z in range(5))) for n in range(len(y))])
    assert leep(logits.softmax(1), labels) == pytest.approx(expected, rel=1e-6)  # softmax in float32


def test_nce_is_minus_scikit_learn_s_conditional_entropy():
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = outputs(D=5)
    source = logits.argmax(1)
    entropy = -sum(p * math.log(p) for p in np.bincount(labels.numpy()) / len(labels))
    mutual = metrics.mutual_info_score(labels.numpy(), source.numpy())
    assert nce(source, labels) == pytest.approx(mutual - entropy, abs=EXACT)
    assert nce(labels, labels) == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize(("N", "D"), [(60, 7), (20, 30)], ids=["more-images", "more-features"])
def test_logme_is_the_best_marginal_likelihood(N, D):
    optimize, stats = pytest.importorskip("scipy.optimize"), pytest.importorskip("scipy.stats")
    z, labels = outputs(N, D)
    features = z.double().numpy()

    def best(y: np.ndarray) -> float:
        """Evidence of y ~ N(0, I/β + zzᵀ/α), maximised without any of LogME's formulas."""

        def minus_evidence(logs: np.ndarray) -> float:
            alpha, beta = np.exp(logs)
            covariance = np.eye(N) / beta + features @ features.T / alpha
            return -stats.multivariate_normal.logpdf(y, np.zeros(N), covariance) / N

        starts = ([0.0, 0.0], [3.0, 2.0], [1.0, 3.0])
        return -min(optimize.minimize(minus_evidence, start, method="Nelder-Mead").fun for start in starts)

    expected = np.mean([best((labels == c).double().numpy()) for c in range(3)])
    assert logme(z, labels) == pytest.approx(expected, abs=1e-5)  # both stop near the top, which is flat


@pytest.mark.parametrize(("N", "D"), [(60, 7), (20, 30)], ids=["more-images", "more-features"])
def test_h_score_is_its_definition_with_scikit_learn_s_shrinkage(N, D):
    covariance = pytest.importorskip("sklearn.covariance")
    z, labels = outputs(N, D)
    x, y = z.double().numpy(), labels.numpy()
    x = x - x.mean(0)
    s = covariance.ledoit_wolf_shrinkage(x, assume_centered=True)
    means = np.stack([x[y == c].mean(0) for c in y])
    shrunk = covariance.shrunk_covariance(x.T @ x / N, s)
    expected = np.trace(np.linalg.inv(shrunk) @ (means.T @ means / N)) * (1 - s)
    assert 0.01 < s < 0.99
    assert h_score(z, labels) == pytest.approx(expected, rel=EXACT)
    if N > D:
        original = np.trace(np.linalg.inv(x.T @ x / N) @ (means.T @ means / N))
        assert h_score(z, labels, shrinkage=0) == pytest.approx(original, rel=EXACT)


@pytest.mark.parametrize("k", [1, 4])
def test_knn_accuracy_is_scikit_learn_s_leaving_one_out(k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    z, labels = outputs(apart=0.7)
    x, y = z.double().numpy(), labels.numpy()
    right = 0
    for n in range(len(y)):
        others = np.arange(len(y)) != n
        # With weights that decide ties as ours: by rank, less than a vote in all.
        weights = lambda distances: 1 - np.arange(k)[None] / (2 * k * k) + 0 * distances  # noqa: E731
        fitted = neighbors.KNeighborsClassifier(k, weights=weights).fit(x[others], y[others])
        right += int(fitted.predict(x[n : n + 1])[0] == y[n])
    assert knn_accuracy(z, labels, k=k) == right / len(y)


def test_probe_accuracy_is_held_out():
    z, labels = outputs(N=90, D=4, apart=8.0)
    assert probe_accuracy(z, labels) == 1.0
    random, labels = outputs(N=120, D=200, C=2, apart=0.0)  # a classifier fits these images without error
    # Held out it guesses: 0.5 ± four standard errors.
    assert abs(probe_accuracy(random, labels) - 0.5) < 4 * 0.5 / math.sqrt(120)


@pytest.mark.parametrize("score", [logme, h_score, knn_accuracy, probe_accuracy, leep])
def test_better_features_score_higher(score):
    def of(apart: float) -> float:
        z, labels = outputs(N=90, D=6, apart=apart)
        return score(z.softmax(1) if score is leep else z, labels)

    assert of(0.2) < of(1.0) < of(4.0)


def test_degenerate_outputs_are_handled_or_refused():
    labels = torch.tensor([0, 1, 0, 1])
    assert h_score(torch.ones(4, 3), labels) == 0
    assert math.isfinite(logme(torch.eye(4), labels))  # labels without error
    assert leep(torch.tensor([[1.0, 0.0]]).expand(4, 2), labels) == pytest.approx(-math.log(2))  # a class never seen
    assert knn_accuracy(torch.eye(4)[:2], labels[:2], k=9) == 0
    for score in (leep, logme, h_score, knn_accuracy):
        with pytest.raises(ValueError, match=r"N >= [12] images, got \[3, 2\] and \[4\]"):
            score(torch.ones(3, 2), labels)
        with pytest.raises(ValueError, match="finite outputs"):
            score(torch.full((4, 2), torch.nan), labels)
    with pytest.raises(ValueError, match="shrinkage from 0 to 1"):
        h_score(torch.ones(4, 3), labels, shrinkage=2)


def test_logme_of_features_that_are_all_zero_is_finite():
    labels = torch.tensor([0, 1, 0, 1, 1])
    zero = logme(torch.zeros(5, 3), labels)
    assert math.isfinite(zero)
    # β = N / Σy², and no weights: ½·log(β/2π) − ½, mean over classes
    expected = [0.5 * math.log(5 / n / (2 * math.pi)) - 0.5 for n in (2, 3)]
    assert zero == pytest.approx(sum(expected) / 2)


def test_constant_features_give_the_share_of_the_largest_class():
    assert probe_accuracy(torch.ones(9, 3), torch.tensor([0, 1, 1] * 3)) == pytest.approx(6 / 9)
