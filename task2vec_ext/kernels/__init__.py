"""The native operators, a file each, and how the module was built; `reference` has them in plain PyTorch."""

from .filter_grad_sq import filter_grad_sq
from .native import BuildInfo, build_info
from .noise import local_noise, weight_noise
from .pairwise import sym_distances

__all__ = ["BuildInfo", "build_info", "filter_grad_sq", "local_noise", "sym_distances", "weight_noise"]
