"""How the benchmarks measure: peak memory, ways that take turns, the GPU's clock."""

import time
from contextlib import nullcontext

import pytest
import torch


def test_peak_memory_is_that_of_the_step_alone():
    from _measure import peak_memory
    from memory import step_of

    assert 64 <= peak_memory(step_of, 50, 300, 64, device="cpu") / 2**20 < 90


def test_ways_take_turns_until_their_budget_is_spent():
    from _measure import interleave

    order = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "cpu")
    assert order == ["a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert len(interleave({"a": lambda: None}, 5, "cpu", budget=-1)["a"]) == 0


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_a_wrong_result_is_not_timed(error):
    from _measure import check

    with pytest.raises(SystemExit, match=r"expected an error to the reference of at most 0\.1, got"):
        check("pass", error, 0.1)


class _Graph:
    """A CUDA graph on the CPU: it keeps nothing and replays nothing."""

    def capture_begin(self):
        pass

    def capture_end(self):
        pass

    def replay(self):
        pass


class _Event:
    def __init__(self, enable_timing):
        self.at = None

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """torch.cuda's clock and graphs, as the benchmarks call them, on the CPU."""

    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    for name, value in {
        "CUDAGraph": _Graph,
        "Event": _Event,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("capturable", [True, False])
def test_the_gpus_clock_times_the_replay_or_the_call(capturable, pretended_gpu, monkeypatch, capsys):
    import _measure

    def refuse(self):
        raise RuntimeError("operation not permitted when stream is capturing")

    if not capturable:
        monkeypatch.setattr(_Graph, "capture_end", refuse)
    calls = []
    replay = _measure.captured(lambda: calls.append(1))
    assert len(calls) == 2  # to warm up, and into the graph
    assert (replay is not None) is capturable
    assert ("not permitted" in capsys.readouterr().err) is not capturable
    assert _measure.gpu_seconds_of(replay or calls.clear, "cuda") >= 0
    assert _measure.host_seconds_of(lambda: calls.append(1), "cuda", calls=3) > 0
