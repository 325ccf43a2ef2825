"""Load a probe from a name, a checkpoint or a module, with the head and the preprocessing that belong to it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from ..data.preprocess import Preprocess
from ..words import Decoder
from .checkpoint import load_checkpoint, read_checkpoint
from .probe import Probe
from .trial import default_head
from .usable import check_eval, check_usable, unwrapped
from .weights import Built, brief, build


@torch.inference_mode(mode=False)  # or its parameters could have no gradients
def load_probe(
    probe: str | nn.Module | Probe = "resnet34",
    *,
    weights: Any = None,
    head: str | None = None,
    preprocess: Preprocess | Literal["weights"] | None = "weights",
    image_size: int | None = None,
    decoder: Decoder | None = None,
) -> Probe:
    """Return a probe from a name or from a module of your own.

    Args:
        probe: A torchvision name (`TORCHVISION_PROBES`), a model of timm by ``"timm:NAME"`` (the extra ``timm``),
            ``"tiny"`` (ships with the package, no download), a module in eval mode, or a `Probe`, returned as it is.
        weights: For a name: a torchvision weights enum or its name (default ``"IMAGENET1K_V1"``, as in the paper), the
            path of a ``.safetensors`` or ``.pth`` checkpoint (read without running code; its head may have any number
            of classes), ``"offline"`` (the weights of ``"tiny"``), or ``"random"`` (seed 0, as a control). For a
            module: a path, loaded into that module, or None to keep its weights.
        head: Name of the layer to refit (see `Probe`), or ``"features"`` if the network's output is the feature vector.
            Default: the Linear layer, or 1×1 convolution with pooling, whose output is the network's.
        preprocess: Default: what the weights were trained with (for modules, checkpoints and random weights
            torchvision's ImageNet preset, 256 → 224 px). None where tasks give preprocessed tensors.
        image_size: Side of another crop in pixels; the resize changes in proportion.
        decoder: How image files are decoded, see `Preprocess`; default: that of `preprocess`, ``"exact"``.

    Returns:
        The probe, in eval mode.

    Raises:
        ValueError: If a name, head or checkpoint does not fit, or a module is in train mode.
        TypeError: If an argument has the wrong type.
        NotImplementedError: If weights were trained with a preprocessing other than resize, crop, normalise.
        RuntimeError: If weights must be downloaded and cannot be, or timm is not installed.
    """
    if isinstance(probe, Probe):
        given = (weights, head, image_size, decoder)
        if preprocess != "weights" or any(option is not None for option in given):
            raise ValueError("load_probe: expected no further options with a Probe; give them when it is loaded.")
        return probe
    if preprocess is not None and preprocess != "weights" and not isinstance(preprocess, Preprocess):
        raise TypeError(f"load_probe: expected preprocess to be a Preprocess, None or 'weights', got {preprocess!r}.")
    if isinstance(probe, nn.Module):
        module = unwrapped(probe)
        name, owned = type(module).__name__, False
        if weights is not None and not isinstance(weights, (str, os.PathLike)):
            raise TypeError(f"load_probe: expected weights of a module as a path, got {brief(weights)}.")
        source = "as given" if weights is None else os.path.basename(os.fspath(weights))
        built = Built(module, source, Preprocess(), weights)
        check_usable(module)
        check_eval(module)
    elif not isinstance(probe, str):
        raise TypeError(f"load_probe: expected a name, an nn.Module or a Probe, got {type(probe).__name__}.")
    else:
        name, built, owned = probe, build(probe, weights), True
    state = None if built.checkpoint is None else read_checkpoint(built.checkpoint)
    expected = _expected(built.preprocess, preprocess, image_size, decoder)
    if head is None:
        head = default_head(built.module, None if expected is None else expected.crop, name)
    random_head = built.weights == "random"
    if built.checkpoint is not None and state is not None:
        random_head = not load_checkpoint(built.module, built.checkpoint, state, name, head, owned=owned)
    return Probe(built.module, head, name, built.weights, expected, random_head=random_head)


def _expected(
    of_weights: Preprocess,
    chosen: Preprocess | Literal["weights"] | None,
    image_size: int | None,
    decoder: Decoder | None,
) -> Preprocess | None:
    """Return the preprocessing that `load_probe`'s arguments ask for."""
    expected = of_weights if chosen == "weights" else chosen
    for name, value in (("image_size", image_size), ("decoder", decoder)):
        if value is not None and expected is None:
            raise ValueError(f"load_probe: expected either preprocess=None or {name}, got both; drop one.")
    if expected is None:
        return None
    if decoder is not None:
        expected = replace(expected, decoder=decoder)
    if image_size is None:
        return expected
    if not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"load_probe: expected image_size as a whole number of pixels >= 1, got {image_size!r}.")
    return expected.with_size(image_size)
