import pytest
import torch

from task2vec_ext import _C, _cpu
from task2vec_ext._geometry import ConvGeometry
from task2vec_ext._gram import Window
from task2vec_ext._routes import ROUTES, choose_route, route_cost


def layer(channels, side, kernel=3, stride=1, filters=None, groups=1):
    out = (side + 2 * (kernel // 2) - kernel) // stride + 1
    return ConvGeometry(
        8,
        groups,
        channels,
        filters or channels,
        (side, side),
        (out, out),
        (kernel, kernel),
        (stride, stride),
        (kernel // 2, kernel // 2),
        (1, 1),
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_large_maps_take_the_direct_route_and_small_ones_the_shifted_gram(device):
    assert choose_route(layer(64, 56), device) == "direct"
    assert choose_route(layer(3, 224, kernel=7, stride=2, filters=64), device) == "direct"
    assert choose_route(layer(512, 7), device) == "shifted_gram"
    assert choose_route(layer(256, 14), device) == "shifted_gram"
    assert choose_route(layer(2048, 7, kernel=1, filters=512), device) in ("gram", "shifted_gram")
    assert choose_route(layer(4096, 1, kernel=1, filters=4096), device) != "direct"  # a Linear layer


@pytest.mark.parametrize("route", ROUTES)
def test_cost_grows_with_the_work(route):
    small, wide, large = layer(64, 14), layer(128, 14), layer(64, 28)
    costs = [route_cost(route, conv, "cpu") for conv in (small, wide, large)]
    assert 0 < costs[0] < min(costs[1:])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_window_sum_equals_slices_added(threads, dtype):
    window = Window(kernel=(3, 2), stride=(2, 1), dilation=(1, 2), gram_width=7, out_width=4)
    gram = torch.randn(3, 9 * 7, 7 * 7, dtype=dtype)  # I: 4 output rows, J: 3
    image = gram.reshape(3, 9, 7, 7, 7)
    expected = sum(
        image[:, i : i + 7 : 2, j : j + 4, i : i + 5 : 2, j : j + 4] for i in range(3) for j in (0, 2)
    ).reshape(3, 16, 12)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = gram.new_empty(3, 16, 12)
        loop = _C.window_sum_f64 if dtype == torch.float64 else _C.window_sum_f32
        loop(gram.data_ptr(), out.data_ptr(), 3, (16, 12), (63, 49), _C.GramWindow(*window))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(out, expected)


def test_workspace_stays_within_its_bound():
    """Allocations of a call beyond inputs and result, as the profiler counts them."""
    from torch.profiler import ProfilerActivity, profile

    x, delta = torch.randn(4, 16, 60, 60), torch.randn(4, 16, 60, 60)
    bound = 8 << 20
    for route in ROUTES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_cpu, "WORKSPACE_BYTES", bound)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
                torch.ops.task2vec_ext.filter_grad_sq(x, delta, [16, 16, 3, 3], [1, 1], [1, 1], [1, 1], 1, route)
        alive = peak = 0
        for event in record.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                peak = max(peak, alive)
        assert 0 < peak <= bound + 4 * 16 * 4, (route, peak)  # workspace and result
