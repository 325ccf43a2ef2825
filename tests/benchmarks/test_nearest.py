"""nearest.py among drawn tasks."""

import torch


def test_the_nearest_are_found_among_drawn_tasks(tmp_path, monkeypatch):
    import nearest

    monkeypatch.setattr(nearest, "peak_memory", lambda *args, **kwargs: 0)  # a fresh process takes seconds
    monkeypatch.setattr(nearest, "ROWS", 50)
    monkeypatch.setattr(nearest.search, "CANDIDATES", 0)  # set by the benchmark
    real = torch.randn(6, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    real[0, :3] = 0
    *_, result = nearest.measure(real, tasks=120, queries=4, candidates=[10, 120], folder=tmp_path)
    assert result["rounding"] < nearest.ROUNDING
    assert result["ways"]["shortlist of 120"]["recall"] == 1
    assert 0.5 < result["ways"]["shortlist of 10"]["recall"] <= 1
    drawn = nearest.draw(real, 50, torch.Generator().manual_seed(0))
    assert (drawn == 0).sum() in range(3, 3 * 50, 3)
    torch.testing.assert_close(drawn[drawn > 0].log().mean(), real[real > 0].log().mean(), atol=0.3, rtol=0)
