"""d_sym in native code, both passes, on the CPU and in the emulated kernels, against a loop over pairs in NumPy."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pairs import EXACT, FAST, HARD, alive, hard, loop, rows

from task2vec_ext.kernels import pairwise
from task2vec_ext.kernels.native import Runtime
from task2vec_ext.kernels.pairwise import sym_distances


@pytest.fixture(params=["cpu", pytest.param("emulated-gpu", marks=pytest.mark.simt)])
def runtime(request):
    return None if request.param == "cpu" else request.getfixturevalue("emulated")


@pytest.fixture
def emulated(simt):
    return Runtime(simt, 0, 0, 1, tensor_cores=False)


@pytest.fixture(params=["float32-first", "float64"])
def tolerance(request, monkeypatch):
    fast = request.param == "float32-first"
    monkeypatch.setattr(pairwise, "FAST_FROM", 0 if fast else 1 << 62)
    return FAST if fast else EXACT


@pytest.mark.parametrize("name", HARD)
def test_equals_the_loop_on_hard_inputs(name, runtime, tolerance):
    values = hard(name)
    actual = sym_distances(values, runtime=runtime)
    torch.testing.assert_close(actual, loop(values, values), rtol=0, atol=tolerance)
    assert torch.equal(actual, actual.T)
    assert torch.equal(actual.diagonal(), torch.zeros(len(values), dtype=torch.float64))
    cross = sym_distances(values[:4], values[3:], runtime=runtime)
    torch.testing.assert_close(cross, loop(values[:4], values[3:]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("A", [1, 5, 130])
@pytest.mark.parametrize("B", [1, 2, 67])
@pytest.mark.parametrize("K", [1, 16, 519])
def test_any_number_of_rows_and_filters(A, B, K, tolerance):
    a, b = rows(A, K), 3 * rows(B, K, seed=7)
    torch.testing.assert_close(sym_distances(a, b), loop(a, b), rtol=0, atol=tolerance)
    torch.testing.assert_close(sym_distances(a), loop(a, a), rtol=0, atol=tolerance)


@pytest.mark.simt
@pytest.mark.parametrize(("A", "B", "K"), [(1, 1, 1), (65, 3, 33), (3, 70, 32), (66, 65, 5)])
def test_any_number_of_rows_and_filters_in_the_kernels(A, B, K, tolerance, emulated):
    a, b = 3 * rows(A, K), rows(B, K, seed=7)
    torch.testing.assert_close(sym_distances(a, b, emulated), loop(a, b), rtol=0, atol=tolerance)
    torch.testing.assert_close(sym_distances(a, None, emulated), loop(a, a), rtol=0, atol=tolerance)


def test_the_float32_pass_leaves_little_to_the_float64_one(monkeypatch, runtime):
    """Otherwise the tests above would only see float64; scales that differ as those of real tasks do."""
    monkeypatch.setattr(pairwise, "FAST_FROM", 0)
    values = rows(40, 200) * torch.logspace(-1, 1, 40, dtype=torch.float64)[torch.randperm(40)][:, None]
    fast = sym_distances(values, runtime=runtime)
    monkeypatch.setattr(pairwise, "FAST_FROM", 1 << 62)
    same = (fast == sym_distances(values, runtime=runtime)).float().mean()
    assert same < 0.05  # the diagonal is 0.025 of it


@pytest.mark.parametrize("K", [131, 2500])
def test_equal_ratios_do_not_add_up_their_roundings(K, tolerance, runtime):
    """Long runs of one ratio round the same way every time: with 32 float32 additions in a row the error is 4e-6."""
    generator = torch.Generator().manual_seed(0)
    T = 60 if runtime is None else 6
    levels = torch.exp(1.5 * torch.randn(T, 2, generator=generator, dtype=torch.float64))
    values = torch.where(torch.arange(K) < K * torch.rand(T, 1, generator=generator), levels[:, :1], levels[:, 1:])
    torch.testing.assert_close(sym_distances(values, None, runtime), loop(values, values), rtol=0, atol=tolerance)


def test_equal_rows_have_distance_zero_and_near_ones_are_as_good_as_float64(runtime, tolerance):
    values = rows(1, 300).repeat(6, 1)
    assert torch.equal(sym_distances(values, runtime=runtime), torch.zeros(6, 6, dtype=torch.float64))
    assert torch.equal(sym_distances(values, values, runtime), torch.zeros(6, 6, dtype=torch.float64))
    near = values * rows(6, 300, spread=0.01)
    torch.testing.assert_close(sym_distances(near, runtime=runtime), loop(near, near), rtol=0, atol=EXACT)


def test_same_bits_on_any_number_of_threads(tolerance):
    values = rows(300, 700) * alive(300, 700, 0.99)
    before = torch.get_num_threads()
    try:
        matrices = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            matrices.append((sym_distances(values), sym_distances(values[:7], values)))
    finally:
        torch.set_num_threads(before)
    for matrix, cross in matrices[1:]:
        assert torch.equal(matrix, matrices[0][0])
        assert torch.equal(cross, matrices[0][1])


def test_rows_that_are_not_contiguous(runtime):
    values = rows(5, 60)
    assert torch.equal(
        sym_distances(values[:, ::3], runtime=runtime), sym_distances(values[:, ::3].clone(), None, runtime)
    )


def test_memory_beyond_the_input(tmp_path):
    """300 MB at 1,460 tasks × 8,512 filters; here a fresh process, a fifth of the size, and dead filters."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not say what a process's peak memory is")
    script = r"""
import re, torch
from pathlib import Path
from task2vec_ext import distance_matrix
from task2vec_ext.kernels import pairwise
torch.set_num_threads(2)
pairwise.FAST_FROM = 0
T, K = 292, 8512
rows = torch.rand(T, K, dtype=torch.float64) + 0.01
rows[0, 0] = 0
def status(field):
    return 1024 * int(re.search(field + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
for kind in ("sym", "sym_scaled"):
    distance_matrix(rows[:8], kind)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    distance_matrix(rows, kind)
    print(status("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    sym, scaled = map(int, done.stdout.split())
    assert 0 < sym <= 300e6 / 5
    assert 0 < scaled <= 300e6 / 5
