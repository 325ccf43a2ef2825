"""Which route to ‖g_n[o,·]‖² a layer takes: one cost function a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from .geometry import ConvGeometry

Route = Literal["direct", "winograd", "gram", "shifted_gram"]
ROUTES: tuple[Route, ...] = get_args(Route)
CPU_ROUTES: tuple[Route, ...] = ("direct", "winograd", "shifted_gram")
CUDA_ROUTES: tuple[Route, ...] = ("direct", "gram", "shifted_gram")

NARROW_GROUP_FILTERS = 16
"""Groups of fewer filters than this would leave the direct route's tiles mostly empty; they take torch's convolution on
the CPU and a kernel of their own on CUDA."""


def available_routes(conv: ConvGeometry, device_type: str) -> tuple[Route, ...]:
    """Return the `ROUTES` that `conv` can take on ``"cpu"`` or ``"cuda"``, in their order."""
    if device_type == "cuda":
        return CUDA_ROUTES
    plain = conv.kernel == (3, 3) and conv.stride == (1, 1) and conv.dilation == (1, 1)
    return tuple(route for route in CPU_ROUTES if plain or route != "winograd")


class CpuRates(NamedTuple):
    """Cost of each kind of work on a CPU, in multiply-adds of the native loops."""

    call: float  # one call of torch's convolution (narrow groups), of any size
    narrow: float  # one multiply-add of that convolution
    tile: float  # one number of a tile transformed into the Winograd domain
    back: float  # one number of the weight gradient transformed back from it
    pack: float  # one number of the pixels transposed for the Gram matrix
    shift: float  # one number of the Gram matrix added to A


class CudaRates(NamedTuple):
    """Cost of each kind of work on CUDA, in multiply-adds of the direct route."""

    gram: float  # one multiply-add of the Gram matrix (a batched matrix product)
    form: float  # one multiply-add of the quadratic form δAδᵀ, tiles filled up
    number: float  # one number written to memory and read again: of the unfolded input, the pixels, a Gram matrix
    gather: float  # one number of the pixels' Gram matrix added to A


# Fitted to 32 conv shapes of ResNet-18/34/50, ResNeXt-50 and the tiny probe (batch 8, channels-last, 2 cores with
# AVX-512, a unit of about 6 ps): all get their fastest route.
CPU_RATES = CpuRates(call=8e6, narrow=3, tile=4, back=4, pack=40, shift=3)
# Not measured on a GPU: benchmarks/gpu_model.py counts an H100's FLOP, bytes and instructions. A multiply-add of the
# direct route takes 8 fs in TF32. Numbers are 8 bytes of traffic at 2.8 TB/s; one that is gathered takes a lane 10
# instructions, half of the time waiting. In 16 bits the direct multiply-adds cost half, which by that count would turn
# the choice of no layer of a ResNet where the other route were more than a tenth faster.
CUDA_RATES = CudaRates(gram=2, form=3, number=350, gather=84)


def route_cost(route: Route, conv: ConvGeometry, device_type: str) -> float:
    """Return the cost of one sample by one of `available_routes`, in multiply-adds of the direct route.

    With Q output locations, P weights a filter, M padded pixels, G groups, K = kH·kW, and S phases of the stride:

    - direct: C_out·P·Q
    - winograd: C_out·P/K·36·T for T = ⌈H_out/4⌉·⌈W_out/4⌉ tiles, which have 36·T·(C_in + C_out) numbers
    - gram: G·Q²·P for UᵀU, Q²·C_out for the form, G·P·Q numbers unfolded, G·Q² of A
    - shifted_gram, CPU: half of S·Q²·C_in for the pixels and of Q²·C_out for the form, G·K·Q²/2 numbers added
    - shifted_gram, CUDA: M²·C_in for the pixels, Q²·C_out for the form, G·K·Q² numbers gathered, M·C_in numbers padded,
      G·(M² + Q²) of the Gram matrix and A

    On CUDA, and in the native loops of the CPU, tiles are counted as if they were full.
    """
    return _cuda_cost(route, conv) if device_type == "cuda" else _cpu_cost(route, conv)


def _cpu_cost(route: Route, conv: ConvGeometry) -> float:
    rates, product = CPU_RATES, conv.filters * conv.patch_size * conv.positions
    if route == "direct" and conv.group_filters < NARROW_GROUP_FILTERS:
        return rates.call + rates.narrow * product
    # The native loops work on whole vectors of channels and filters.
    channels, filters = (conv.groups * _whole_vectors(n) for n in (conv.group_channels, conv.group_filters))
    if route == "direct":
        return filters * _whole_vectors(conv.patch_size) * conv.positions
    if route == "winograd":
        tiles = -(-conv.out_size[0] // 4) * -(-conv.out_size[1] // 4)
        pairs = channels * filters / conv.groups
        return 36 * (tiles * pairs + rates.back * pairs + rates.tile * tiles * (channels + filters))
    phases = min(conv.stride[0], conv.kernel[0]) * min(conv.stride[1], conv.kernel[1])
    products = conv.positions**2 / 2 * (phases * conv.channels + filters)
    shifts = conv.groups * conv.kernel[0] * conv.kernel[1] * conv.positions**2 / 2
    return products + rates.pack * phases * conv.positions * conv.channels + rates.shift * shifts


def _whole_vectors(count: int) -> int:
    return _whole(count, 32)


def _cuda_cost(route: Route, conv: ConvGeometry) -> float:
    rates, groups, positions = CUDA_RATES, conv.groups, conv.positions
    taps = conv.kernel[0] * conv.kernel[1]
    if route == "direct":
        if conv.group_filters < NARROW_GROUP_FILTERS:
            return conv.filters * conv.patch_size * positions
        side = 128 if taps == 1 else 64
        few = conv.group_channels < 8
        patch = _whole(conv.patch_size, 160) if few else _whole(conv.group_channels, side) * taps
        return groups * _whole(conv.group_filters, side) * patch * _whole(positions, 8)
    form = rates.form * groups * _whole(conv.group_filters, 128) * _whole(positions, 16) * _whole(positions, 128)
    if route == "gram":
        unfolded = groups * conv.patch_size * positions
        # The product reads its operand twice, for its rows and its columns.
        return rates.gram * unfolded * positions + rates.number * (2 * unfolded + groups * positions**2) + form
    pixels = conv.span(0, conv.out_size[0]) * conv.span(1, conv.out_size[1])
    numbers = 2 * conv.channels * pixels + groups * (pixels**2 + positions**2)
    gathered = rates.gather * groups * taps * positions**2
    return rates.gram * pixels**2 * conv.channels + rates.number * numbers + gathered + form


def _whole(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def choose_route(conv: ConvGeometry, device_type: str) -> Route:
    """Return the cheapest available route by `route_cost`; a tie goes to the first of `ROUTES`."""
    return min(available_routes(conv, device_type), key=lambda route: route_cost(route, conv, device_type))
