"""Networks and weights of torchvision and timm, by name."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data.preprocess import Preprocess
from .checkpoint import check_finite, load_state, read_checkpoint

TORCHVISION_PROBES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    *("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"),
    *("swin_t", "swin_s", "swin_b"),
)
TIMM_PREFIX = "timm:"
OFFLINE_PROBE = "tiny"


class Built(NamedTuple):
    """A network by name, and the checkpoint that is still to be loaded into it."""

    module: nn.Module
    weights: str
    preprocess: Preprocess
    checkpoint: str | os.PathLike[str] | None = None


def build(name: str, weights: Any = "random") -> Built:
    """Return a network by name, in eval mode; a checkpoint is not loaded yet."""
    built = _build(name, weights)
    built.module.eval()
    return built


def _build(name: str, weights: Any) -> Built:
    if name == OFFLINE_PROBE:
        return _build_tiny(weights)
    if name.startswith(TIMM_PREFIX):
        return timm_weights(name.removeprefix(TIMM_PREFIX), weights)
    if name not in TORCHVISION_PROBES:
        advice = "Pass a file as weights, with the name of its architecture." if os.path.isfile(name) else ""
        raise ValueError(
            f"load_probe: expected {OFFLINE_PROBE!r}, a model of timm ('{TIMM_PREFIX}resnet34.a1_in1k') or one of "
            f"{', '.join(TORCHVISION_PROBES)}; got {name!r}. {advice or 'Any other network can be passed as a module.'}"
        )
    if weights == "offline":
        raise ValueError(
            f"load_probe: the weights that ship with the package fit the probe {OFFLINE_PROBE!r}, not {name!r}; pass "
            f"probe={OFFLINE_PROBE!r}, or the path of a checkpoint of {name}."
        )
    return torchvision_weights(name, weights)


def _build_tiny(weights: Any) -> Built:
    from .tiny import TINY_MEAN, TINY_SIZE, TINY_STD, TinyResNet, tiny_weights_path

    if weights is not None and not (isinstance(weights, str) and weights in ("offline", "random")):
        raise ValueError(
            f"load_probe: expected weights 'offline' or 'random' for {OFFLINE_PROBE!r}, got {brief(weights)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TinyResNet()
    if weights != "random":
        load_state(module, read_checkpoint(tiny_weights_path()), "the tiny probe")
    return Built(module, weights or "offline", Preprocess(TINY_SIZE, TINY_SIZE, TINY_MEAN, TINY_STD))


def torchvision_weights(name: str, weights: Any) -> Built:
    """Return a classification model as torchvision builds it.

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
            return Built(get_model(name, weights=None), "random", Preprocess())
    is_name = isinstance(weights, str) and not os.path.exists(weights) and not Path(weights).suffix
    if is_name or not isinstance(weights, (str, os.PathLike)):
        raise ValueError(
            f"load_probe: expected weights of {name} as an enum, one of {known}, DEFAULT, random, or the path of a "
            f"checkpoint; got {brief(weights)}."
        )
    return Built(get_model(name, weights=None), Path(weights).name, Preprocess(), weights)


def brief(weights: Any) -> str:
    """Return what was given as weights, for a message; never their values."""
    if isinstance(weights, (str, os.PathLike, int, float)):
        return repr(weights)
    return f"an object of type {type(weights).__name__}; to use weights in memory, load them into a module and pass it"


def _from_enum(name: str, weights: Any) -> Built:
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
        ) from None  # the reason is in the message
    check_finite(module.state_dict(), f"{name} {weights.name}")
    return Built(module, weights.name, Preprocess.from_torchvision(weights.transforms()))


def timm_weights(name: str, weights: Any) -> Built:
    """Return a model as timm builds it.

    The name may carry the tag of its weights (``"resnet34.a1_in1k"``). `weights` are None for those that the name
    stands for, a path, or ``"random"``.
    """
    try:
        import timm
    except ImportError:
        raise RuntimeError(
            f"load_probe: expected timm on this machine for the probe 'timm:{name}', found none; install it: pip "
            "install timm (the package's extra of that name)."
        ) from None
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and not timm.models.is_model_pretrained(name)):
        close = difflib.get_close_matches(name, [*timm.list_models(), *timm.list_pretrained()], n=5)
        raise ValueError(
            f"load_probe: expected a model of timm {timm.__version__} after 'timm:', got {name!r}; close to it: "
            f"{', '.join(close) or 'none'}."
        )
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise ValueError(f"load_probe: expected weights of timm:{name} as 'random' or a path, got {brief(weights)}.")
    if weights is None:
        try:
            module = timm.create_model(name, pretrained=True)
        except Exception as error:  # whatever the hub, its cache or the network says
            reason = str(error).split("\n", 1)[0]
            repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None) or "(none)"
            raise RuntimeError(
                f"load_probe: the weights of timm:{name} are not on this machine and could not be downloaded "
                f"({reason}). Fetch model.safetensors of the Hugging Face repository {repository} elsewhere and pass "
                "weights='PATH', or use the probe 'tiny', which needs none."
            ) from None
        check_finite(module.state_dict(), f"timm:{name}")
        source = str(module.pretrained_cfg.get("tag") or "pretrained")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, source = timm.create_model(name, pretrained=False), Path(weights).name
    expected = Preprocess.from_timm(timm.data.resolve_model_data_config(module))
    return Built(module, source, expected, None if weights in (None, "random") else weights)
