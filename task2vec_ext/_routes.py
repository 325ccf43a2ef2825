"""Which of the three routes to ‖g_n[o,·]‖² a layer takes: one cost function, constants measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from ._geometry import ConvGeometry

Route = Literal["direct", "gram", "shifted_gram"]
ROUTES: tuple[Route, ...] = get_args(Route)


class Rates(NamedTuple):
    """Price of each kind of work on one device type, in multiply-adds of the direct route on a large layer."""

    call: float
    """One sample's weight gradient, however small."""
    write: float
    """A number of a weight gradient, written, squared and summed."""
    gram: float
    """A multiply-add of the Gram matrix (a batched matrix product)."""
    form: float
    """A multiply-add of the quadratic form δAδᵀ."""
    unfold: float
    """A number of the unfolded input, written and read again."""
    shift: float
    """A number of the pixels' Gram matrix added into A."""


RATES = {
    # Read off all conv shapes of ResNet-18/34/50 and ResNeXt-50, batch 8, 2 cores, torch 2.14.1, where one unit was
    # about 6 ps: of 32 shapes 29 get their fastest route, the others one at most 1.35 times slower.
    "cpu": Rates(call=8e6, write=80, gram=1.7, form=2, unfold=80, shift=16),
    # Not measured on a GPU: from an H100's data sheet, if TF32 products ran at half its peak, about 8 fs each. The form
    # is TF32 where 16-bit inputs double the others' rate. An unfolded number is 4 to 8 bytes of memory traffic at
    # 3 TB/s; a shifted one is a load from L2, and a ninth (3×3) of a number of the Gram matrix, written and read.
    "cuda": Rates(call=0, write=0, gram=1, form=2, unfold=200, shift=100),
}


def route_cost(route: Route, conv: ConvGeometry, device_type: str) -> float:
    """Return the cost of one sample by `route`, in multiply-adds of the direct route.

    With Q output locations, P weights a filter, M padded pixels and G groups:

    - direct: C_out·P·Q, and C_out·P numbers written
    - gram: G·Q²·P for UᵀU, Q²·C_out for the form, G·P·Q numbers unfolded
    - shifted_gram: M²·C_in for the pixels, Q²·C_out for the form, G·kH·kW·Q² numbers added

    Args:
        route: one of `ROUTES`.
        conv: sizes of the layer.
        device_type: ``"cpu"`` or ``"cuda"``.

    Returns:
        A positive number; only its order among the routes matters.
    """
    rates = RATES[device_type]
    if route == "direct":
        weights = conv.filters * conv.patch_size
        return rates.call + weights * (conv.positions + rates.write)
    form = rates.form * conv.positions**2 * conv.filters
    if route == "gram":
        unfolded = conv.groups * conv.patch_size * conv.positions
        return unfolded * (rates.gram * conv.positions + rates.unfold) + form
    pixels = conv.span(0, conv.out_size[0]) * conv.span(1, conv.out_size[1])
    shifts = conv.groups * conv.kernel[0] * conv.kernel[1] * conv.positions**2
    return rates.gram * pixels**2 * conv.channels + rates.shift * shifts + form


def choose_route(conv: ConvGeometry, device_type: str) -> Route:
    """Return the cheapest route by `route_cost`; a tie goes to the first of `ROUTES`."""
    return min(ROUTES, key=lambda route: route_cost(route, conv, device_type))
