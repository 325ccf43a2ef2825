"""Checkpoints and torchvision's weights: read safely, fitted strictly, and a download that fails says what to do."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .data.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where training scripts keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights in a ``.safetensors`` or ``.pth`` file, on the CPU, without running any of its code.

    Args:
        path: the file; ``.pth``, ``.pt``, ``.ckpt`` and ``.bin`` are loaded with ``weights_only=True``.

    Returns:
        Name → tensor; wrappers such as ``{"state_dict": …}`` and prefixes such as ``module.`` are taken off.

    Raises:
        ValueError: If the file is missing, cannot be read, or holds no weights.
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
    """Load `state` into `module`, strictly, after checking that it fits and is finite.

    Args:
        module: changed only if everything fits.
        state: name → tensor; 16-bit weights are widened.
        who: what the message calls the two.

    Raises:
        ValueError: If names or shapes differ, or a weight is NaN or infinite.
    """
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
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"load_probe: expected finite weights for {who}, got NaN or infinity in {name}.")
    module.load_state_dict(state, strict=False)  # strict but for counters that old checkpoints lack


def torchvision_weights(name: str, weights: Any) -> tuple[nn.Module, str, Preprocess]:
    """Return (module, source, preprocessing) of a torchvision classification model.

    Args:
        name: of the model.
        weights: enum, name of an enum's member, path, or ``"random"``.

    Returns:
        The module in train mode as torchvision builds it, a word for people, and the weights' preprocessing.

    Raises:
        ValueError: If the weights are not of this model, or a checkpoint does not fit.
        RuntimeError: If the weights are not on this machine and cannot be downloaded.
    """
    from torchvision.models import WeightsEnum, get_model, get_model_weights

    options = get_model_weights(name)
    known = ", ".join(option.name for option in options)
    if isinstance(weights, WeightsEnum):
        if weights not in list(options):
            raise ValueError(f"load_probe: expected weights of {name} ({known}), got {weights}.")
        return _from_enum(name, weights)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return get_model(name, weights=None), "random", Preprocess()
    if isinstance(weights, str) and weights in (*options.__members__, "DEFAULT"):
        return _from_enum(name, options[weights])
    if not isinstance(weights, (str, os.PathLike)):
        raise ValueError(
            f"load_probe: expected weights of {name} as an enum, one of {known}, or a path; got {weights!r}."
        )
    if isinstance(weights, str) and not os.path.exists(weights) and not Path(weights).suffix:
        raise ValueError(
            f"load_probe: expected weights of {name} as one of {known}, DEFAULT, random, or the path of a checkpoint; "
            f"got {weights!r}."
        )
    state = read_checkpoint(weights)
    classes = len(state["fc.weight"]) if "fc.weight" in state else 1000  # a fine-tuned head is replaced anyway
    module = get_model(name, weights=None, num_classes=classes)
    if "fc.weight" not in state:
        state |= {key: value for key, value in module.state_dict().items() if key.startswith("fc.")}
    load_state(module, state, f"{name} with {weights}")
    return module, Path(weights).name, Preprocess()


def _from_enum(name: str, weights: Any) -> tuple[nn.Module, str, Preprocess]:
    from torchvision.models import get_model

    module = get_model(name, weights=None, num_classes=len(weights.meta["categories"]))
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub announces a download where results belong
            state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, no space, a damaged download
        raise RuntimeError(
            f"load_probe: the weights {name} {weights.name} are not on this machine and could not be downloaded "
            f"({error}). Fetch {weights.url} elsewhere and put it at {file}, pass weights='PATH', or use the probe "
            "'tiny', which needs none."
        ) from error
    load_state(module, state, f"{name} {weights.name}")
    return module, weights.name, Preprocess.from_torchvision(weights.transforms())
