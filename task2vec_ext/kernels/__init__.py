"""The native operators, a file each, and how the module was built; `reference` has them in plain PyTorch."""

from ._geometry import ConvGeometry, conv_geometry
from ._routes import ROUTES, Route, available_routes, choose_route, route_cost
from .filter_grad_sq import filter_grad_sq
from .native import BuildInfo, build_info
from .noise import local_noise, weight_noise
from .pairwise import sym_distances

__all__ = [
    "ROUTES",
    "BuildInfo",
    "ConvGeometry",
    "Route",
    "available_routes",
    "build_info",
    "choose_route",
    "conv_geometry",
    "filter_grad_sq",
    "local_noise",
    "route_cost",
    "sym_distances",
    "weight_noise",
]
