"""Which modules can be probes: their mode, their weights, the wrappers around them."""

from __future__ import annotations

import torch
from torch import nn

_WRAPPERS = {  # the network inside is an attribute called "module"
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "torch.optim.swa_utils.AveragedModel",
    "timm.utils.model_ema.ModelEmaV2",
    "timm.utils.model_ema.ModelEmaV3",
}


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside wrappers that change its names: DataParallel, averaging, torch.compile."""
    while True:
        if isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module.get_submodule("_orig_mod")
        elif any(f"{kind.__module__}.{kind.__qualname__}" in _WRAPPERS for kind in type(module).__mro__):
            module = module.get_submodule("module")
        else:
            return module


def check_eval(module: nn.Module) -> None:
    """Raise ValueError unless every submodule is in eval mode, and every BatchNorm has running statistics."""
    for name, child in module.named_modules():
        if child.training:
            where = f" (its submodule {name!r} is)" if name else ""
            raise ValueError(
                f"Probe: expected a network in eval mode, got train mode{where}: per-sample gradients do not exist "
                "where BatchNorm couples the images of a batch; call module.eval() first."
            )
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_mean is None:
            raise ValueError(
                f"Probe: expected BatchNorm with running statistics, got none in {name!r}: batch statistics couple the "
                "samples; use a network trained with track_running_stats=True."
            )


def check_usable(module: nn.Module) -> None:
    """Raise unless the module is Python code whose weights have values that can be differentiated."""
    for name, child in module.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            raise TypeError(
                f"Probe: expected a network in Python, got TorchScript{f' in {name!r}' if name else ''}, whose layers "
                "cannot be watched; build the original nn.Module and load scripted.state_dict() into it."
            )
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(value):
            raise ValueError(
                f"Probe: expected weights with values, but {name!r} has no shape yet (a lazy module); run one batch "
                "through the network first."
            )
        if value.is_meta:
            raise ValueError(
                f"Probe: expected weights with values, but {name!r} is on the meta device; build the network on the "
                "CPU, or module.to_empty(device='cpu') and load its weights."
            )
        if value.is_inference():
            raise ValueError(
                f"Probe: expected weights that can be differentiated, but {name!r} was made under "
                "torch.inference_mode(); build or load the network outside of it."
            )
