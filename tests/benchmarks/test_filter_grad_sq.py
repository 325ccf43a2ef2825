"""filter_grad_sq.py: every route of every shape, and none that is wrong."""

import argparse


def test_filter_grad_sq_measures_every_shape_by_every_route_it_does_not_skip(capsys, monkeypatch):
    import filter_grad_sq

    monkeypatch.setattr(filter_grad_sq, "measure_ceilings", lambda *_: {"gflops": 1.0, "gb_a_second": 1.0})
    monkeypatch.setattr(filter_grad_sq, "FLUSH_BYTES", 1)
    options = argparse.Namespace(arch=["tiny"], size=16, batch_size=2, repeats=1, device="cpu")
    *_, table = filter_grad_sq.measure(options, "fp32")
    assert sum(row["layers"] for row in table["shapes"]) == 12
    for row in table["shapes"]:
        assert row["chosen"] in row["routes"]
        assert all("skipped" in figures or figures["relative_error"] < 1e-4 for figures in row["routes"].values())
        assert row["chosen_to_fastest"] >= 1
    filter_grad_sq.report(table)
    assert "shapes get their fastest route" in capsys.readouterr().out


def test_filter_grad_sq_does_not_time_a_wrong_route_and_goes_on(monkeypatch, capsys):
    import filter_grad_sq

    right = filter_grad_sq.filter_grad_sq
    wrong = {"winograd": 1.001, "direct": 1.0, "shifted_gram": 1.0}
    monkeypatch.setattr(filter_grad_sq, "measure_ceilings", lambda *_: {"gflops": 1.0, "gb_a_second": 1.0})
    monkeypatch.setattr(filter_grad_sq, "FLUSH_BYTES", 1)
    monkeypatch.setattr(filter_grad_sq, "SKIP", 1e9)
    monkeypatch.setattr(filter_grad_sq, "filter_grad_sq", lambda *args, route: right(*args, route=route) * wrong[route])
    options = argparse.Namespace(arch=["tiny"], size=16, batch_size=2, repeats=1, device="cpu")
    *_, table = filter_grad_sq.measure(options, "fp32")
    failed = {route for row in table["shapes"] for route, figures in row["routes"].items() if "failed" in figures}
    assert failed == {"winograd"}
    assert all(row["fastest"] in ("direct", "shifted_gram") for row in table["shapes"])
    filter_grad_sq.report(table)
    assert "shapes get their fastest route" in capsys.readouterr().out
