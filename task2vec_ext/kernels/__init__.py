"""The native operators, a file each, and how the module was built; `reference` has them in plain PyTorch."""

from pathlib import Path

import torch  # noqa: F401  # before the native module, which takes its OpenMP runtime from torch

try:
    from .. import _C  # noqa: F401  # is it here?
except ImportError as error:
    raise ImportError(
        f"task2vec_ext: the native module is missing from {Path(__file__).parents[1]} ({error}); if this is the source "
        "tree, install it with 'pip install -e .' or run from another folder."
    ) from error

from .filter_grad_sq import filter_grad_sq
from .native import BuildInfo, build_info
from .noise import local_noise, weight_noise
from .pairwise import sym_distances

__all__ = ["BuildInfo", "build_info", "filter_grad_sq", "local_noise", "sym_distances", "weight_noise"]
