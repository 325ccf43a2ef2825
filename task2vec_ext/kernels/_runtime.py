"""Which compiled CUDA kernels to launch, and where; how they name a dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import native

if TYPE_CHECKING:
    from torch import Tensor

SCALARS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # enum class Scalar


class Runtime(NamedTuple):
    """Which compiled kernels to launch, and where."""

    kernels: Any
    device: int
    stream: int
    multiprocessors: int
    tensor_cores: bool
    """Of sm_80 and later."""

    @classmethod
    def of(cls, tensor: Tensor) -> Runtime:
        """Return the kernels for the tensor's device and torch's current stream on it."""
        device = tensor.device
        properties = torch.cuda.get_device_properties(device)
        return cls(
            native.cuda_kernels(device),
            device.index,
            torch.cuda.current_stream(device).cuda_stream,
            properties.multi_processor_count,
            properties.major >= 8,
        )
