"""What a network's pass computes in, whatever the caller has set: float32, TF32 or bfloat16."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import torch

from ..words import Dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

DTYPES: tuple[Dtype, ...] = get_args(Dtype)


def check_dtype(dtype: Dtype, module: nn.Module, device: torch.device) -> None:
    """Raise unless the network can compute in this type on the device, before any image is read.

    Raises:
        RuntimeError: If the device has no such arithmetic.
        ValueError: If the weights are not float32, which is what `"tf32"` and `"bfloat16"` round.
    """
    if dtype == "float32":
        return  # no narrower than the weights
    gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if not gpu and (dtype == "tf32" or device.type == "cuda"):
        raise RuntimeError(
            f"fisher_embed: expected a GPU of compute capability 8.0 or later for dtype {dtype!r}, got {device}; pass "
            "dtype='float32'."
        )
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise ValueError(
                f"fisher_embed: expected float32 weights for dtype {dtype!r}, got {weight.dtype} in {name!r}; pass "
                "dtype='float32', which computes in the weights' own type."
            )


@contextmanager
def arithmetic(dtype: Dtype, device: torch.device) -> Iterator[None]:
    """Compute float32 products as `dtype` says inside the block, without the caller's autocast.

    Of bfloat16, which `Probe.features` brings, this is the rest: what autocast leaves in float32.
    """
    backends: Any = torch.backends  # not all of it is annotated
    place = backends.cudnn.conv, backends.cuda.matmul
    if device.type != "cuda":
        place = backends.mkldnn.conv, backends.mkldnn.matmul
    before = [settings.fp32_precision for settings in place]
    try:
        for settings in place:
            settings.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for settings, precision in zip(place, before, strict=True):
            settings.fp32_precision = precision
