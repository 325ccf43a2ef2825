"""Distances against the printed formulas in NumPy and SciPy, and their properties."""

import itertools
import math
import typing

import numpy as np
import pytest
import torch
from torch import Tensor

from task2vec_ext.distance import rules as _rules
from task2vec_ext.distance.distance import cross_distances, distance_matrix
from task2vec_ext.distance.reference import Reference
from task2vec_ext.embedding import Embedding, HeadInfo, ProbeInfo
from task2vec_ext.probe.layers import Layer
from task2vec_ext.settings import EmbedSettings
from task2vec_ext.words import DistanceName

KINDS = typing.get_args(DistanceName)
ZERO_DIAGONAL = [
    distance for distance in KINDS if not distance.startswith("asym_") and distance not in ("asym", "asymmetric_kl")
]
PLAIN = ["sym", "sym_scaled", "cosine", "entropy"]  # need no prior
EXACT = 1e-12  # float64 sums of a few hundred terms of size 1: a thousand roundings of 1e-16 and some room


def make(fisher: Tensor, name: str = "task", prior: Tensor | None = None, scale: float = 2e-7) -> Embedding:
    return Embedding(
        fisher=fisher,
        prior=torch.full_like(fisher, 0.01) if prior is None else prior,
        layers=(Layer("conv1", "conv", 0, len(fisher), 27),),
        probe=ProbeInfo("tiny", "none", "00"),
        head=HeadInfo(2, 0.5, 0.5),
        settings=EmbedSettings(),
        prior_scale=scale,
        num_samples=10,
        name=name,
    )


def fishers(T: int = 5, K: int = 301, *, spread: float = 2.0, dead: float = 0.0) -> Tensor:
    """Log-normal rows of scales that differ as those of real tasks do."""
    generator = torch.Generator().manual_seed(T * K)
    logs = spread * torch.randn(T, K, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-2, 1, T, dtype=torch.float64)[:, None]
    alive = torch.rand(T, K, generator=generator, dtype=torch.float64) >= dead
    return logs.exp() * scale * alive


def embeddings(rows: Tensor) -> list[Embedding]:
    generator = torch.Generator().manual_seed(1)
    prior = 0.1 * torch.rand(rows.shape[1], generator=generator, dtype=torch.float64) + 0.01
    return [make(row, f"task {index}", prior) for index, row in enumerate(rows)]


def reference_for(distance: str, K: int) -> dict[str, Reference]:
    """What `distance` needs besides embeddings of K filters: the reference of twelve other tasks, or nothing."""
    if distance != "library_correlation":
        return {}
    return {"reference": Reference.of([make(row) for row in fishers(12, K, dead=0.1)])}


def by_the_book(distance: str, a: Embedding, b: Embedding, alpha: float = 0.15) -> float:
    """The formula as printed, in NumPy and SciPy, one pair at a time."""
    from scipy.spatial.distance import correlation, cosine

    def sym(x: np.ndarray, y: np.ndarray) -> float:
        live = (x + y) > 0
        x, y = x[live], y[live]
        return cosine(x / (x + y), y / (x + y))

    def kl(v: np.ndarray, w: np.ndarray) -> np.ndarray:
        return 0.5 * (v / w - 1 + np.log(w) - np.log(v))

    fa, fb, prior = a.fisher.numpy(), b.fisher.numpy(), a.prior.numpy()
    if distance.endswith("_scaled"):
        fa, fb, prior = fa / fa.mean(), fb / fb.mean(), prior / prior.mean()
    va, vb = 1 / (fa + prior), 1 / (fb + prior)
    live = (fa + fb) > 0
    r = fa[live] / (fa + fb)[live]
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(r * np.log(r)) - np.nan_to_num((1 - r) * np.log(1 - r))
    middle = (va + vb) / 2

    def log_fisher(f: np.ndarray) -> np.ndarray:
        return np.log(f / f.mean() + 1e-3)

    others = fishers(12, len(fa), dead=0.1).float().double()  # F and the mean are rounded to float32
    common = np.mean([log_fisher(row.numpy()) for row in others], axis=0).astype(np.float32)
    return {
        "sym": lambda: sym(fa, fb),
        "asym": lambda: sym(fa, fb) - alpha * sym(fa, prior),
        "cosine": lambda: cosine(fa, fb),
        "normalized_cosine": lambda: cosine(va * prior, vb * prior),
        "correlation": lambda: correlation(va, vb),
        "entropy": lambda: np.log(2) - entropy.mean(),
        "kl": lambda: np.maximum(kl(va, vb), kl(vb, va)).sum(),
        "asymmetric_kl": lambda: kl(va, vb).sum(),
        "jsd": lambda: (0.5 * (kl(va, middle) + kl(vb, middle))).mean(),
        "library_correlation": lambda: correlation(log_fisher(fa) - common, log_fisher(fb) - common),
    }[distance.removesuffix("_scaled")]()


@pytest.mark.parametrize("dead", [0.0, 0.3], ids=["all-alive", "dead-filters"])
@pytest.mark.parametrize("distance", KINDS)
def test_distance_matrix_and_cross_distances_equal_the_printed_formula(distance, dead):
    tasks = embeddings(fishers(dead=dead))
    expected = torch.tensor([[by_the_book(distance, a, b) for b in tasks] for a in tasks], dtype=torch.float64)
    how = reference_for(distance, 301)
    matrix = distance_matrix(tasks, distance, **how)
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix, expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(
        cross_distances(tasks[:2], tasks[1:], distance, **how), expected[:2, 1:], rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize("distance", ZERO_DIAGONAL)
def test_symmetric_kinds_are_symmetric_to_the_bit_with_an_exactly_zero_diagonal(distance):
    tasks, how = embeddings(fishers(6, 97, dead=0.1)), reference_for(distance, 97)
    matrix = distance_matrix(tasks, distance, **how)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.zeros(6, dtype=torch.float64))
    assert (matrix + torch.eye(6) > 0).all()
    assert torch.equal(cross_distances(tasks, tasks, distance, **how).diagonal(), torch.zeros(6, dtype=torch.float64))


def test_asym_subtracts_the_sources_distance_to_its_prior_and_may_be_negative():
    tasks = embeddings(fishers())
    sym, asym = distance_matrix(tasks), distance_matrix(tasks, "asym", alpha=0.4)
    difference = (sym - asym) / 0.4
    torch.testing.assert_close(difference, difference[:, :1].expand_as(sym))  # depends on the row only
    assert (asym.diagonal() < 0).all()
    assert difference.min() > 0.01
    assert torch.equal(distance_matrix(tasks, "asym", alpha=0.0), sym)


def test_asymmetric_kl_points_from_row_to_column():
    narrow, wide = (
        make(torch.full((3,), 9.99, dtype=torch.float64)),
        make(torch.full((3,), 0.99, dtype=torch.float64)),
    )
    matrix = distance_matrix([narrow, wide], "asymmetric_kl")  # variances 0.1 and 1, three filters
    assert matrix[0, 1].item() == pytest.approx(1.5 * (0.1 - 1 + math.log(10)))
    assert matrix[1, 0].item() == pytest.approx(1.5 * (10 - 1 - math.log(10)))


def test_sym_does_not_see_a_common_scale_but_sees_a_relative_one():
    rows = fishers(dead=0.1)
    matrix = distance_matrix(rows)
    torch.testing.assert_close(distance_matrix(rows * 3.7e-9), matrix, rtol=0, atol=EXACT)
    one_scaled = rows.clone()
    one_scaled[0] *= 10
    assert (distance_matrix(one_scaled) - matrix)[0, 1:].abs().min() > 0.01
    scaled = distance_matrix(rows, "sym_scaled")
    torch.testing.assert_close(distance_matrix(one_scaled, "sym_scaled"), scaled, rtol=0, atol=EXACT)


def test_sym_is_half_the_variance_of_the_log_ratio_when_small():
    logs = 0.01 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = distance_matrix(logs.exp())[0, 1].item()
    ratio = (logs[0] - logs[1]).var(correction=0).item()
    assert d == pytest.approx(ratio / 2, rel=2e-3)  # the next order is Var² = 2e-4 of it


def test_sym_stays_between_zero_and_one_and_reaches_both():
    left = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(distance_matrix(left), expected, rtol=0, atol=EXACT)
    matrix = distance_matrix(fishers(12, 50, spread=8.0, dead=0.5))
    assert matrix.min() >= 0
    assert matrix.max() <= 1


@pytest.mark.parametrize("distance", PLAIN)
def test_filters_dead_in_both_tasks_count_for_nothing(distance):
    rows = fishers(4, 60, dead=0.2)
    padded = torch.cat([rows, torch.zeros(4, 40, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(distance_matrix(padded, distance), distance_matrix(rows, distance), rtol=0, atol=EXACT)


@pytest.mark.parametrize("distance", PLAIN)
def test_plain_kinds_are_right_at_the_ends_of_float64(distance):
    rows = torch.tensor([[1.0, 2.0, 4.0, 0.0], [4.0, 1.0, 0.5, 2.0]], dtype=torch.float64)
    for exponent in (-1073, 1021):  # 2**-1074 is the least, 2**1024 too much
        extreme = (rows.numpy() * 2.0 ** (exponent // 2)) * 2.0 ** (exponent - exponent // 2)
        torch.testing.assert_close(
            distance_matrix(extreme, distance), distance_matrix(rows, distance), rtol=0, atol=EXACT
        )


@pytest.mark.parametrize("factor", [1e-300, 1e-150, 1e150, 1e200, 1e305])
@pytest.mark.parametrize("distance", PLAIN)
def test_plain_kinds_are_right_at_any_common_scale(distance, factor):
    rows = fishers(3, 40, spread=1.0, dead=0.1)
    torch.testing.assert_close(
        distance_matrix(rows * factor, distance), distance_matrix(rows, distance), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("ratio", [1e4, 1e8, 1e16, 1e100, 1e300], ids="ratio {:.0e}".format)
def test_sym_is_right_at_any_relative_scale(ratio):
    """With F_a ≪ F_b everywhere r ∝ F_a/F_b and q = 1, to the first order in 1/ratio."""
    from scipy.spatial.distance import cosine

    a, b = fishers(2, 200, spread=0.5)
    expected = cosine((a / b).numpy(), np.ones(200))
    for first, second in itertools.permutations([a, b * ratio]):
        got = distance_matrix(torch.stack([first, second]))[0, 1].item()
        assert got == pytest.approx(expected, rel=10 / ratio, abs=EXACT)
    tiny_against_huge = distance_matrix(torch.stack([a * 1e-300, b * 1e200]))[0, 1].item()
    assert tiny_against_huge == pytest.approx(expected, abs=EXACT)


def test_kl_family_is_finite_where_a_filter_is_dead_in_one_task():
    tasks = embeddings(torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64))
    for distance in ("kl", "asymmetric_kl", "jsd", "correlation", "normalized_cosine"):
        assert math.isfinite(distance_matrix(tasks, distance)[0, 1])


@pytest.mark.parametrize("distance", KINDS)
def test_blocks_over_tasks_and_filters_do_not_show(distance, monkeypatch):
    tasks, how = embeddings(fishers(7, 50, dead=0.1)), reference_for(distance, 50)
    whole = distance_matrix(tasks, distance, **how)
    for elements in (1, 16, 120):  # one filter at a time; part of one pair; two pairs at a time
        monkeypatch.setattr(_rules, "_BLOCK_ELEMENTS", elements)
        for again in (distance_matrix(tasks, distance, **how), cross_distances(tasks, tasks, distance, **how)):
            torch.testing.assert_close(again, whole, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("distance", KINDS)
def test_no_temporary_is_larger_than_a_block(distance):
    """Every tensor that is made while one row is computed, seen by torch itself."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            inside_row = isinstance(out, Tensor) and not out._is_view()
            sizes.extend([out.numel()] if inside_row else [])
            return out

    T, K = 300, 1000
    rule = _rules.RULES[distance]
    rows, how = fishers(T, K), reference_for(distance, K)
    vectors = rule.prepare(_rules.Tasks(rows, torch.ones_like(rows), [str(i) for i in range(T)], "test", **how))
    with Recorder():
        _rules.row_distances(rule, vectors.row(0), vectors)
    assert max(sizes) <= _rules._BLOCK_ELEMENTS < T * K
    assert 12 * 8 * _rules._BLOCK_ELEMENTS <= 32 * 2**20


@pytest.mark.parametrize("distance", KINDS)
def test_one_embedding_is_enough(distance):
    task, how = embeddings(fishers(1, 20)), reference_for(distance, 20)
    assert distance_matrix(task, distance, **how).shape == (1, 1)
    assert cross_distances(task, task, distance, **how).shape == (1, 1)


def test_plain_tensors_arrays_and_embeddings_give_the_same_and_are_left_alone():
    rows = fishers(4, 30)
    before = rows.clone()
    expected = distance_matrix([make(row) for row in rows])
    for same in (rows, rows.numpy(), rows.tolist(), rows.clone().requires_grad_()):
        assert torch.equal(distance_matrix(same), expected)
    assert torch.equal(cross_distances(rows[:1], [make(row) for row in rows]), expected[:1])
    assert torch.equal(rows, before)
    assert not distance_matrix(rows.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: distance_matrix([]), ValueError, "distance_matrix: expected one or more embeddings"),
        (lambda: distance_matrix([], "kl"), ValueError, "expected one or more embeddings"),
        (lambda: cross_distances(fishers(2, 3), []), ValueError, "cross_distances: expected one or more"),
        (lambda: distance_matrix(torch.ones(3)), ValueError, r"\[T, K\].*got shape \[3\]"),
        (lambda: distance_matrix(torch.ones(3, 0)), ValueError, r"got shape \[3, 0\]"),
        (lambda: cross_distances(torch.ones(2, 3), torch.ones(2, 4)), ValueError, "equally many filters"),
        (
            lambda: distance_matrix(torch.ones(2, 3), "asym"),
            TypeError,
            "expected a sequence of Embedding.*sym_scaled",
        ),
        (lambda: distance_matrix(make(torch.ones(3, dtype=torch.float64))), TypeError, "expected a sequence"),
        (
            lambda: distance_matrix(torch.ones(2, 3), "cosin"),
            ValueError,
            "expected distance to be one of sym, .*'cosin'",
        ),
        (lambda: distance_matrix(torch.ones(2, 3), alpha=-1), ValueError, "alpha"),
        (lambda: distance_matrix(torch.ones(2, 3), alpha=math.nan), ValueError, "alpha"),
        (lambda: distance_matrix(torch.tensor([[1.0], [0.0]])), ValueError, "row 1 has entries from 0 to 0"),
        (lambda: distance_matrix(torch.tensor([[1.0], [-2.0]])), ValueError, "row 1 has entries from -2"),
        (
            lambda: distance_matrix(torch.tensor([[1.0, 1.0], [1.0, math.nan]])),
            ValueError,
            "row 1 has entries from nan",
        ),
        (lambda: distance_matrix(torch.tensor([[1.0], [math.inf]])), ValueError, "row 1 has .* to inf"),
        (
            lambda: distance_matrix([make(torch.zeros(3, dtype=torch.float64), "flat")]),
            ValueError,
            "embedding 'flat'",
        ),
        (
            lambda: distance_matrix([make(torch.ones(3, dtype=torch.float64), "p", torch.zeros(3).double())], "kl"),
            ValueError,
            "expected priors .*embedding 'p'",
        ),
        (
            lambda: distance_matrix([make(torch.ones(3, dtype=torch.float64), "even")], "correlation"),
            ValueError,
            "embedding 'even'",
        ),
    ],
)
def test_distances_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_distances_refuse_embeddings_that_do_not_compare():
    a, b = make(torch.ones(3, dtype=torch.float64), "a"), make(torch.ones(4, dtype=torch.float64), "b")
    with pytest.raises(ValueError, match=r"'a' .* and 'b' .* layers"):
        distance_matrix([a, b])
    with pytest.raises(ValueError, match=r"'a' .* and 'b' .* layers"):
        cross_distances([a], [b])


def test_distances_refuse_priors_of_different_strength_only_where_priors_count():
    row = fishers(1, 9)[0]
    a, b = make(row, "a", scale=1e-7), make(row, "b", scale=1e-5)
    for refused in (lambda: distance_matrix([a, b], "asym"), lambda: cross_distances([a], [b], "kl")):
        with pytest.raises(ValueError, match=r"prior_scale.*'a': 1e-07, 'b': 1e-05"):
            refused()
    assert distance_matrix([a, b], "sym").abs().max() == 0
