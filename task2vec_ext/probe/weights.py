"""Weights from checkpoints, torchvision and timm: read without running code, loaded strictly."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.preprocess import Preprocess
from .layers import default_head, find_head

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where training scripts keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
_RENAMED = (  # torchvision's files of its DenseNets and ViTs are older than the names in its code
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return name → weight of a ``.safetensors`` or ``.pth`` file, on the CPU, without running any of its code.

    Wrappers such as ``{"state_dict": …}`` and prefixes such as ``module.`` are taken off.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"read_checkpoint: expected a checkpoint at {file}, found no such file; check the path.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"read_checkpoint: {file} could not be read as {file.suffix or 'a checkpoint'} ({type(error).__name__}: "
            f"{reason}); it may be damaged, or hold objects other than tensors: save module.state_dict() instead."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise ValueError(f"read_checkpoint: expected a dictionary of tensors in {file}, got {type(content).__name__}.")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def load_state(module: nn.Module, state: dict[str, Tensor], who: str) -> None:
    """Load `state` into `module`, once it is known to fit and to be finite; `who` names the network in messages."""
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{label}: {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for label, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise ValueError(
            f"load_probe: expected a checkpoint that fits {who}; {'; '.join(problems)}. Is it of another architecture?"
        )
    _check_finite(state, who)
    module.load_state_dict(state, strict=False)  # strict but for counters that old checkpoints lack


def _check_finite(state: dict[str, Tensor], who: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"load_probe: expected finite weights for {who}, got NaN or infinity in {name}.")


def _with_checkpoint(module: nn.Module, path: str | os.PathLike[str], who: str) -> nn.Module:
    """Return the module with a checkpoint's weights. Its head may have other classes or be missing: it is refitted."""
    state = read_checkpoint(path)
    for old, new in _RENAMED:
        state = {old.sub(new, name): value for name, value in state.items()}
    name = default_head(module)
    head = find_head(module, name)
    if f"{name}.weight" in state:
        module.set_submodule(name, nn.Linear(head.in_features, len(state[f"{name}.weight"]), head.bias is not None))
    else:
        state |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    load_state(module, state, f"{who} with {path}")
    return module


def torchvision_weights(name: str, weights: Any) -> tuple[nn.Module, str, Preprocess]:
    """Return (module as torchvision builds it, name of the weights, preprocessing) of a classification model.

    `weights` are an enum, the name of one's member, a path, ``"random"``, or None for the model's first ones
    (``"IMAGENET1K_V1"`` except for ViT-H).
    """
    from torchvision.models import WeightsEnum, get_model, get_model_weights

    options = get_model_weights(name)
    known = ", ".join(option.name for option in options)
    if weights is None:
        weights = next(iter(options))
    elif isinstance(weights, str) and weights in (*options.__members__, "DEFAULT"):
        weights = options[weights]
    if isinstance(weights, WeightsEnum):
        if weights not in list(options):
            raise ValueError(f"load_probe: expected weights of {name} ({known}), got {weights}.")
        return _from_enum(name, weights)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return get_model(name, weights=None), "random", Preprocess()
    is_name = isinstance(weights, str) and not os.path.exists(weights) and not Path(weights).suffix
    if is_name or not isinstance(weights, (str, os.PathLike)):
        raise ValueError(
            f"load_probe: expected weights of {name} as an enum, one of {known}, DEFAULT, random, or the path of a "
            f"checkpoint; got {weights!r}."
        )
    return _with_checkpoint(get_model(name, weights=None), weights, name), Path(weights).name, Preprocess()


def _from_enum(name: str, weights: Any) -> tuple[nn.Module, str, Preprocess]:
    from torchvision.models import get_model

    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub announces a download where results belong
            module = get_model(name, weights=weights, progress=False)  # checks the file's hash
    except (OSError, RuntimeError) as error:  # no network, no space, a damaged download
        reason = str(error).split("\n", 1)[0]
        raise RuntimeError(
            f"load_probe: the weights {name} {weights.name} are not on this machine and could not be downloaded "
            f"({reason}). Fetch {weights.url} elsewhere and put it at {file}, pass weights='PATH', or use the probe "
            "'tiny', which needs none."
        ) from error
    _check_finite(module.state_dict(), f"{name} {weights.name}")
    return module, weights.name, Preprocess.from_torchvision(weights.transforms())


def timm_weights(name: str, weights: Any) -> tuple[nn.Module, str, Preprocess]:
    """Return (module as timm builds it, name of the weights, preprocessing) of a model of timm.

    The name may carry the tag of its weights (``"resnet34.a1_in1k"``). `weights` are None for those that the name
    stands for, a path, or ``"random"``.
    """
    try:
        import timm
    except ImportError as error:
        raise RuntimeError(
            f"load_probe: expected timm on this machine for the probe 'timm:{name}', found none; install it: pip "
            "install timm (the package's extra of that name)."
        ) from error
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and not timm.models.is_model_pretrained(name)):
        close = difflib.get_close_matches(name, [*timm.list_models(), *timm.list_pretrained()], n=5)
        raise ValueError(
            f"load_probe: expected a model of timm {timm.__version__} after 'timm:', got {name!r}; close to it: "
            f"{', '.join(close) or 'none'}."
        )
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise ValueError(f"load_probe: expected weights of timm:{name} as 'random' or a path, got {weights!r}.")
    if weights is None:
        try:
            module = timm.create_model(name, pretrained=True)
        except Exception as error:  # whatever the hub, its cache or the network says
            repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None) or "(none)"
            raise RuntimeError(
                f"load_probe: the weights of timm:{name} are not on this machine and could not be downloaded "
                f"({error}). Fetch model.safetensors of the Hugging Face repository {repository} elsewhere and pass "
                "weights='PATH', or use the probe 'tiny', which needs none."
            ) from error
        _check_finite(module.state_dict(), f"timm:{name}")
        source = str(module.pretrained_cfg.get("tag") or "pretrained")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, source = timm.create_model(name, pretrained=False), str(weights)
        if weights != "random":
            module, source = _with_checkpoint(module, weights, f"timm:{name}"), Path(weights).name
    return module, source, Preprocess.from_timm(timm.data.resolve_model_data_config(module))
