"""fisher_pass.py and end_to_end.py on a small network: right numbers or no times; no assertion on a time."""

import sys

import graphs
import pytest


def test_the_reference_tells_a_wrong_pass_from_a_right_one(setup, monkeypatch):
    import _step

    step = setup.build()
    assert max(step.errors().values()) < 1e-5
    right = _step.per_sample_fisher
    monkeypatch.setattr(_step, "per_sample_fisher", lambda *args: right(*args) * 1.01)
    assert list(step.errors().values()) == pytest.approx([0.01, 0.01], rel=1e-2)


def test_fisher_pass_does_not_time_a_wrong_operator_and_goes_on(setup, monkeypatch, tmp_path, capsys):
    import _record
    import _step
    import fisher_pass

    right, wrong = _step.filter_grad_sq, [1.0001]  # in one layer of the first row
    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    monkeypatch.setattr(_step, "filter_grad_sq", lambda *args: right(*args) * (wrong.pop() if wrong else 1))
    monkeypatch.setattr(fisher_pass, "peak_memory", lambda *args, **kwargs: 1)  # a fresh process takes seconds
    options = "--arch tiny --size 24 --batch-size 2 --repeats 1 --device cpu --precision fp32 bf16"
    monkeypatch.setattr(sys, "argv", ["fisher_pass.py", *options.split()])
    with pytest.raises(SystemExit, match=r"tiny fp32: contiguous, filter_grad_sq in \S+: expected an error within"):
        fisher_pass.main()
    first, second = fisher_pass.read_result("fisher_pass")["rows"]
    assert "seconds" not in first
    assert second["precision"] == "bf16"
    assert "nothing timed" in capsys.readouterr().out


def test_fisher_pass_appends_to_rows_of_the_same_commit(monkeypatch, tmp_path):
    import _record
    import fisher_pass

    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    monkeypatch.setenv("TASK2VEC_COMMIT", "abc")
    monkeypatch.setattr(fisher_pass, "report", lambda row: None)
    monkeypatch.setattr(
        fisher_pass, "measure", lambda setup, repeats: {"arch": setup.arch, "precision": setup.precision}
    )

    def rows(arch):
        monkeypatch.setattr(sys, "argv", ["fisher_pass.py", "--append", "--device", "cpu", "--arch", arch])
        fisher_pass.main()
        return [row["arch"] for row in fisher_pass.read_result("fisher_pass")["rows"]]

    assert rows("resnet34") == ["resnet34"]
    assert rows("resnet50") == ["resnet34", "resnet50"]
    assert rows("resnet34") == ["resnet50", "resnet34"]  # measured again
    monkeypatch.setenv("TASK2VEC_COMMIT", "def")
    assert rows("resnet18") == ["resnet18"]


def test_fisher_pass_breaks_the_time_down_by_layer_and_times_replays(setup, capsys, monkeypatch):
    import fisher_pass

    made = graphs.install(monkeypatch)
    row = fisher_pass.measure(setup, repeats=1, memory=False, graphs=True)
    assert len(made) == 2
    assert row["graphs"]["relative_error"] == 0
    assert row["graphs"]["time_ratio"]["n"] == 1
    assert len(row["breakdown"]["layers"]) == sum(row["breakdown"]["layers_by_route"].values()) == 12
    assert row["time_ratio"]["n"] == 1
    fisher_pass.report(row)
    printed = capsys.readouterr().out
    assert "input gradients" in printed
    assert "replayed from CUDA graphs" in printed


def test_input_gradients_are_those_of_the_pass_and_leave_no_weight_gradient(setup):
    step = setup.build()
    seen = {}
    step.input_gradients(lambda layer: seen.update({layer.name: layer}))
    assert set(seen) == {layer.name for layer in step.layers}
    assert all(layer.input.shape[1] == layer.layer[0][1] for layer in seen.values())
    assert all(parameter.grad is None for parameter in step.probe.module.parameters())


def test_end_to_end_clocks_every_stage(setup):
    import end_to_end

    first, *_, result = end_to_end.measure(setup, count=20, repeats=1)
    assert first["relative_error"] < 1e-3
    assert result["time_ratio"]["n"] == 1
    assert all(result["stages"][name] > 0 for name in ("features", "head", "fisher", "waiting"))
