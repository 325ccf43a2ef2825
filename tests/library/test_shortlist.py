import dataclasses
import importlib.util

import pytest
import torch
from small import Blobs, small_probe

from task2vec_ext import as_task, build_library
from task2vec_ext.embed.fisher_embed import fisher_embed
from task2vec_ext.library import build as library_build
from task2vec_ext.library import shortlist as _shortlist
from task2vec_ext.library.matrix import Matrix, nearest

K = 300


@pytest.fixture
def matrix(tmp_path) -> Matrix:
    """200 log-normal rows in 20 groups, some filters dead."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(20, K, generator=random).repeat(10, 1)
    rows = (centres + 0.3 * torch.randn(200, K, generator=random)).exp()
    rows[:, ::50] = 0
    result = Matrix(tmp_path / "matrix.f32", K)
    for slot, row in enumerate(rows):
        result.write(slot, row)
    return result


@pytest.fixture
def few(monkeypatch) -> None:
    """What holds for 100,000 tasks holds for 50, and 20 candidates do."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(_shortlist, "EXACT_UP_TO", 50)
    monkeypatch.setattr(_shortlist, "CANDIDATES", 20)


def query(matrix: Matrix) -> torch.Tensor:
    return matrix.read(torch.tensor([3]))[0].double() * 1.01


def test_distances_in_the_features_are_nearly_d_sym_of_close_tasks():
    random = torch.Generator().manual_seed(0)
    a = torch.randn(1, 4000, generator=random, dtype=torch.float64).exp()
    b = a * (0.1 * torch.randn(5, 4000, generator=random, dtype=torch.float64)).exp()
    square = (_shortlist.features(a) - _shortlist.features(b)).square().mean(1)
    expected = torch.stack([_d_sym(a[0], row) for row in b])
    torch.testing.assert_close(square.double() / 2, expected, rtol=0.05, atol=0)  # the floor takes 2 %, tanh 1 %


def _d_sym(a, b):
    return 1 - torch.cosine_similarity(a / (a + b), b / (a + b), dim=0)


@pytest.mark.usefixtures("few")
def test_the_shortlist_holds_the_nearest(matrix, tmp_path):
    slots = torch.arange(200)
    some = _shortlist.shortlist(tmp_path / "faiss", matrix, query(matrix), slots)
    assert len(some) == 20
    exact = nearest(matrix, query(matrix)[None], slots, 10)
    assert torch.equal(nearest(matrix, query(matrix)[None], some, 10).slots, exact.slots)


@pytest.mark.usefixtures("few")
def test_what_came_since_is_compared_and_what_is_gone_is_not(matrix, tmp_path):
    path = tmp_path / "faiss"
    _shortlist.shortlist(path, matrix, query(matrix), torch.arange(160))
    made = path.read_bytes()
    gone = [3, 23, 43]
    slots = torch.tensor([slot for slot in range(200) if slot not in gone])
    some = _shortlist.shortlist(path, matrix, query(matrix), slots).tolist()
    assert path.read_bytes() == made
    assert set(range(160, 200)) <= set(some)
    assert not set(gone) & set(some)
    assert 17 <= len([slot for slot in some if slot < 160]) <= 20
    _shortlist.shortlist(path, matrix, query(matrix), torch.arange(100, 200))  # 40 are new: still few
    assert path.read_bytes() == made
    path.unlink()
    _shortlist.shortlist(path, matrix, query(matrix), torch.arange(60))
    assert len(_shortlist.shortlist(path, matrix, query(matrix), torch.arange(200))) == 20  # 140 were new: made anew


def test_without_faiss_all_are_compared(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(_shortlist, "EXACT_UP_TO", 50)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    slots = torch.arange(200)
    assert torch.equal(_shortlist.shortlist(tmp_path / "faiss", matrix, query(matrix), slots), slots)


@pytest.mark.usefixtures("few")
def test_a_large_library_finds_what_a_small_one_would(tmp_path, monkeypatch):
    template = dataclasses.replace(fisher_embed(Blobs(), small_probe(), progress=False), group_means=None)
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(10, len(template), generator=random)

    def drawn(task, *_, **__):
        noise = 0.3 * torch.randn(len(template), generator=random)
        fisher = template.fisher * (centres[int(task.name[-1])] + noise).exp()
        return dataclasses.replace(template, name=task.name, fisher=fisher)

    monkeypatch.setattr(library_build, "embed_task", drawn)
    tasks = [as_task(Blobs(n=3), name=f"task{t}") for t in range(60)]
    built = build_library(tasks, tmp_path / "library", small_probe())
    found = [built.nearest(f"task{t}", k=1) for t in range(10)]
    assert (tmp_path / "library" / "shortlist.faiss").is_file()
    monkeypatch.setattr(_shortlist, "EXACT_UP_TO", 1000)
    assert found == [built.nearest(f"task{t}", k=1) for t in range(10)]
