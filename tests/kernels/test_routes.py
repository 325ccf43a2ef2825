import pytest
import torch

from task2vec_ext import _C, filter_grad_sq
from task2vec_ext.kernels.geometry import ConvGeometry
from task2vec_ext.kernels.routes import available_routes, choose_route, route_cost


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
    assert choose_route(layer(64, 56, kernel=1), device) == "direct"
    assert choose_route(layer(3, 224, kernel=7, stride=2, filters=64), device) == "direct"
    assert choose_route(layer(512, 7), device) == "shifted_gram"
    assert choose_route(layer(4096, 1, kernel=1, filters=4096), device) != "direct"  # a Linear layer


def test_maps_of_14_pixels_take_the_gram_route_on_the_cpu_alone():
    """On CUDA what the Gram matrices write and read costs more than they save (benchmarks/gpu_model.py)."""
    for conv in (layer(256, 14), layer(1024, 14, kernel=1, filters=512)):
        assert choose_route(conv, "cuda") == "direct"
    assert choose_route(layer(256, 14), "cpu") == "shifted_gram"


def linear(features_in, features_out, positions):
    return ConvGeometry(8, 1, features_in, features_out, (positions, 1), (positions, 1), (1, 1), (1, 1), (0, 0), (1, 1))


def test_linear_layers_on_sequences_take_the_cheaper_of_direct_and_gram():
    for features in ((768, 2304), (768, 3072), (3072, 768), (768, 768)):  # a ViT-B's at 224 px
        assert choose_route(linear(*features, positions=197), "cpu") == "shifted_gram"
    for features in ((96, 384), (384, 96)):  # a ConvNeXt's first stage
        assert choose_route(linear(*features, positions=56 * 56), "cpu") == "direct"
    assert choose_route(linear(25088, 4096, positions=1), "cpu") == "shifted_gram"  # a VGG's


def test_large_maps_of_3x3_layers_take_the_winograd_route():
    assert [choose_route(layer(channels, side), "cpu") for channels, side in ((64, 56), (128, 28))] == ["winograd"] * 2
    assert choose_route(layer(64, 56, stride=2, filters=128), "cpu") == "direct"
    assert choose_route(layer(64, 56, groups=64), "cpu") == "direct"  # depthwise


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cost_grows_with_the_work(device):
    small, wide, large = layer(64, 14), layer(128, 14), layer(64, 28)
    for route in available_routes(small, device):
        costs = [route_cost(route, conv, device) for conv in (small, wide, large)]
        assert 0 < costs[0] < min(costs[1:])


def scratch_now():
    """Bytes that the native loops' threads hold between calls, those of other tests included."""
    _C.cpu.scratch_peak()
    return _C.cpu.scratch_peak()


@pytest.mark.parametrize(
    "size", [(8, 64, 56, 3, 1), (4, 3, 224, 7, 2), (16, 256, 14, 3, 1), (8, 64, 56, 1, 1)], ids=str
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_what_a_call_allocates_does_not_grow_with_the_batch(size, layout):
    """Beyond inputs and result: torch's allocations by its profiler's count, the native loops' by their own."""
    from torch.profiler import ProfilerActivity, profile

    samples, channels, side, kernel, stride = size
    conv = torch.nn.Conv2d(channels, 64, kernel, stride, kernel // 2, bias=False)
    x = torch.randn(samples, channels, side, side).to(memory_format=layout)
    delta = torch.randn_like(conv(x)).to(memory_format=layout)
    geometry = layer(channels, side, kernel, stride, 64)
    sample = (x[0].numel() + delta[0].numel()) * x.element_size()
    for route in available_routes(geometry, "cpu"):
        if route == "shifted_gram" and side > 100:
            continue  # one row of the Gram matrix is larger: the operator's docstring says so
        before = scratch_now()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            filter_grad_sq(x, delta, conv.weight.shape, stride, kernel // 2, route=route)
        torchs = most = 0
        for event in record.profiler.kineto_results.events():
            if event.name() == "[memory]":
                torchs += event.nbytes()
                most = max(most, torchs)
        threads = torch.get_num_threads()
        assert most <= samples * 64 * 4 + 1024, (route, most)  # the result
        assert _C.cpu.scratch_peak() - before <= threads * ((16 << 20) + 2 * sample), route


def test_large_buffers_are_given_back():
    x, delta = torch.randn(2, 64, 300, 300), torch.randn(2, 64, 300, 300)
    before = scratch_now()
    filter_grad_sq(x, delta, (64, 64, 3, 3), padding=1, route="winograd")
    assert _C.cpu.scratch_peak() - before > 2 * x[0].numel() * 4 - (16 << 20)  # copies of a sample in another layout
    assert scratch_now() - before <= torch.get_num_threads() * (16 << 20)


# Worst of all filters and samples; float32 rounds at 6e-8.
FLOAT32_ERROR = {"direct": 2e-6, "winograd": 4e-6, "shifted_gram": 4e-6}


@pytest.mark.parametrize("size", [(64, 56), (128, 28), (256, 14), (512, 7)], ids=str)
@pytest.mark.parametrize("positive", [False, True], ids=["symmetric", "after-relu"])
def test_float32_error_of_every_route_on_the_layers_of_a_resnet(size, positive):
    """Winograd included; run with -s to see the errors."""
    channels, side = size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, generator=generator)
    x = x.relu() if positive else x
    delta = torch.randn(1, channels, side, side, generator=generator)
    weight_shape = (channels, channels, 3, 3)
    exact = filter_grad_sq(x.double(), delta.double(), weight_shape, padding=1, route="direct")
    for route in available_routes(layer(channels, side), "cpu"):
        if route_cost(route, layer(channels, side), "cpu") > 2e9:
            continue
        error = filter_grad_sq(x, delta, weight_shape, padding=1, route=route) / exact - 1
        worst = float(error.abs().max())
        print(f"{channels}@{side}x{side} {route}: largest relative error {worst:.1e}")
        assert worst <= FLOAT32_ERROR[route], route


@pytest.mark.parametrize("route", ["direct", "winograd", "shifted_gram"])
def test_threads_and_batches_do_not_change_the_bits(route):
    x, delta = torch.randn(3, 40, 12, 12), torch.randn(3, 130, 12, 12)
    arguments = ((130, 40, 3, 3), 1, 1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(filter_grad_sq(x, delta, *arguments, route=route))
    finally:
        torch.set_num_threads(before)
    one_by_one = [filter_grad_sq(x[n : n + 1], delta[n : n + 1], *arguments, route=route) for n in range(3)]
    for other in (*results[1:], torch.cat(one_by_one)):
        assert torch.equal(results[0], other)


def test_a_route_that_is_not_the_layers_is_refused():
    x, delta = torch.randn(1, 3, 9, 9), torch.randn(1, 4, 5, 5)
    with pytest.raises(ValueError, match=r"a route this layer can take on cpu, one of \('direct', 'shifted_gram'\)"):
        filter_grad_sq(x, delta, (4, 3, 3, 3), stride=2, padding=1, route="winograd")
