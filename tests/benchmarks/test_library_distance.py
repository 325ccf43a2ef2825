"""Distances that look at the library: the measures by hand, the formulas by NumPy."""

import numpy as np
import pytest
import torch
from layouts import image
from synthetic import embedding

from task2vec_ext import as_task


@pytest.fixture
def tasks(tmp_path):
    """Five tasks of two images each; "bird 1" and "mixed 0" have one in common."""
    files = [tmp_path / f"{i}.png" for i in range(9)]
    for i, file in enumerate(files):
        image(file, i)
    rows = [("bird 0", 0, 1), ("bird 1", 2, 3), ("bird 2", 4, 5), ("mixed 0", 2, 6), ("mixed 1", 7, 8)]
    found = []
    for name, one, other in rows:
        task = as_task([(files[one], 0), (files[other], 1)], name=name)
        task.metadata["domain"] = name.split()[0]
        found.append(task)
    return found


def test_retrieval_leaves_out_tasks_of_other_domains_that_share_images(tasks):
    from _library import retrieval

    distances = torch.tensor(
        [
            [0.0, 0.3, 0.1, 0.2, 0.4],  # bird 0: right, wrong, right, wrong
            [0.3, 0.0, 0.5, 0.1, 0.4],  # bird 1: mixed 0 shares an image; right, wrong, right
            [0.1, 0.5, 0.0, 0.6, 0.7],  # bird 2: right, right, wrong, wrong
            [0.2, 0.1, 0.6, 0.0, 0.3],  # mixed 0: bird 1 shares an image; wrong, right, wrong
            [0.4, 0.4, 0.7, 0.3, 0.0],  # mixed 1: right
        ]
    )
    found = retrieval(distances, tasks)
    assert found.own.tolist() == [1, 1, 1, 0, 1]
    expected = [(1 + 2 / 3) / 2, (1 + 2 / 3) / 2, 1, 1 / 2, 1]
    assert found.precision.tolist() == pytest.approx(expected)
    alone = retrieval(distances[2:4, 2:4], tasks[2:4])  # neither has another task of its domain
    assert alone.own.isnan().all()
    assert alone.precision.isnan().all()


def test_both_halves_have_tasks_of_every_domain_and_do_not_depend_on_the_order(tasks):
    from _library import halves

    first, second = halves(tasks)
    again = halves([tasks[i] for i in (2, 0, 1, 4, 3)])
    names = [[task.name for task in half] for half in (first, second)]
    assert names == [[task.name for task in half] for half in again]
    assert sorted(names[0] + names[1]) == sorted(task.name for task in tasks)
    assert {name.split()[0] for name in names[0]} == {name.split()[0] for name in names[1]} == {"bird", "mixed"}


def test_the_cosine_of_twice_centred_rows_is_the_weighted_correlation_of_differences_from_the_library():
    from _library import cosine, twice_centred

    random = torch.Generator().manual_seed(0)
    rows, weights = (torch.rand(*shape, generator=random, dtype=torch.float64) for shape in ((6, 40), (40,)))
    away = (rows - rows.mean(0)).numpy()
    np.testing.assert_allclose(cosine(twice_centred(rows)), 1 - np.corrcoef(away), atol=1e-12)
    covariance = np.cov(away, aweights=weights.numpy())
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(
        cosine(twice_centred(rows, weights)), 1 - covariance / np.outer(scale, scale), atol=1e-12
    )


def test_a_distance_without_the_two_compared_is_relative_to_all_others(tasks):
    from _library import Embedded
    from _references import without_both

    rows = [embedding(row, task.name) for row, task in zip(_fishers(5), tasks, strict=True)]
    found = without_both(Embedded(tasks, rows, torch.zeros(5, 1)))
    logs = np.log(_fishers(5).numpy() / _fishers(5).numpy().mean(1, keepdims=True) + 1e-3)
    for a, b in [(0, 1), (3, 2)]:
        mean = np.delete(logs, [a, b], 0).mean(0)
        assert found[a, b] == pytest.approx(1 - np.corrcoef(logs[a] - mean, logs[b] - mean)[0, 1], abs=1e-12)
    assert found.diagonal().abs().max() == 0


def _fishers(count):
    return torch.rand(count, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_an_interval_over_domains_is_wider_where_the_tasks_of_a_domain_agree():
    from library_distance import interval

    values, domains = torch.tensor([1.0] * 10 + [0.0] * 10 + [torch.nan]), ["a"] * 10 + ["b"] * 10 + ["c"]
    found = interval(values, domains)
    assert found["mean"] == 0.5
    assert found["over_domains"] == [0, 1]
    low, high = found["over_tasks"]
    assert 0.5 - low == pytest.approx(2 * (0.25 / 20) ** 0.5, abs=0.06)  # two standard errors; steps of 1/20
    assert high - 0.5 == pytest.approx(2 * (0.25 / 20) ** 0.5, abs=0.06)
