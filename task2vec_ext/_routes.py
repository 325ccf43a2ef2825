"""Which of the three routes to ‖g_n[o,·]‖² a layer takes: one cost function, constants measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from ._geometry import ConvGeometry

Route = Literal["direct", "gram", "shifted_gram"]
ROUTES: tuple[Route, ...] = get_args(Route)


class Rates(NamedTuple):
    """Price of each kind of work on one device type, relative to a multiply-add of the direct route."""

    gram: float
    """A multiply-add of the Gram matrix (a batched matrix product)."""
    form: float
    """A multiply-add of the quadratic form δAδᵀ."""
    unfold: float
    """A number of the unfolded input, written and read again."""
    shift: float
    """A number of the pixels' Gram matrix added into A."""


RATES = {
    # PLACEHOLDER
    "cpu": Rates(gram=1.0, form=1.0, unfold=16.0, shift=4.0),
    # Not measured on a GPU: arithmetic counts, the window's sum charged as reads from cache.
    "cuda": Rates(gram=1.0, form=1.0, unfold=16.0, shift=4.0),
}


def route_cost(route: Route, conv: ConvGeometry, device_type: str) -> float:
    """Return the cost of one sample by `route`, in multiply-adds of the direct route.

    With Q output locations, P weights a filter, M padded pixels and G groups (task2vec.md §5):

    - direct: C_out·P·Q
    - gram: G·Q²·P for UᵀU, Q²·C_out for the form, G·P·Q numbers unfolded
    - shifted_gram: M²·C_in for the pixels, Q²·C_out for the form, G·kH·kW·Q² numbers added

    Args:
        route: one of `ROUTES`.
        conv: sizes of the layer.
        device_type: ``"cpu"`` or ``"cuda"``.

    Returns:
        A positive number; only its order among the routes matters.
    """
    if route == "direct":
        return conv.filters * conv.patch_size * conv.positions
    rates = RATES[device_type]
    form = rates.form * conv.positions**2 * conv.filters
    if route == "gram":
        unfolded = conv.groups * conv.patch_size * conv.positions
        return rates.gram * unfolded * conv.positions + rates.unfold * unfolded + form
    pixels = (conv.size[0] + 2 * conv.padding[0]) * (conv.size[1] + 2 * conv.padding[1])
    shifts = conv.groups * conv.kernel[0] * conv.kernel[1] * conv.positions**2
    return rates.gram * pixels**2 * conv.channels + rates.shift * shifts + form


def choose_route(conv: ConvGeometry, device_type: str) -> Route:
    """Return the cheapest route by `route_cost`; a tie goes to the first of `ROUTES`."""
    return min(ROUTES, key=lambda route: route_cost(route, conv, device_type))
