"""The probe: one fixed, pre-trained network with a named head, its preprocessing and its fingerprint."""

from __future__ import annotations

import hashlib
import os
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .._util.warnings import Task2VecWarning
from ..data.preprocess import Preprocess
from .layers import Layer, default_head, filter_weight, find_head, named_filters, undescribed
from .precision import Dtype
from .weights import load_state, read_checkpoint, timm_weights, torchvision_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


@dataclass(frozen=True, eq=False)
class Probe:
    """The fixed network that embeddings are computed with.

    Args:
        module: A network in eval mode that maps ``[B, 3, H, W]`` to an output through the head.
        head: Name of the ``nn.Linear`` inside that is refitted for every task and never part of the embedding.
        name: Architecture, for display only.
        weights: Where the weights came from, for display only.
        preprocess: The preprocessing the weights were trained with; None where tasks give preprocessed tensors.
        pool: Name of the module whose input is the feature map. If given, there is a feature vector for each cell of
            the map instead of one for each image. Like the head, it is not part of the embedding.
        random_head: Whether the head's own weights are random, as a checkpoint without them leaves them: the network's
            outputs mean nothing. Embeddings refit the head and do not care.
        dtype: What the network computes in; `EmbedSettings.dtype` decides it for an embedding.

    Raises:
        ValueError: If head or pool is not found or the module is in train mode.
        TypeError: If the head is not an ``nn.Linear``.
    """

    module: nn.Module
    head: str
    name: str
    weights: str
    preprocess: Preprocess | None
    pool: str | None = field(default=None, kw_only=True)
    random_head: bool = field(default=False, kw_only=True)
    dtype: Dtype = field(default="float32", kw_only=True)

    def __post_init__(self) -> None:
        """Check head, pool and mode."""
        find_head(self.module, self.head)
        if self.pool is not None and self.pool not in dict(self.module.named_modules()):
            raise ValueError(
                f"Probe: expected a module named {self.pool!r} whose input is the feature map, found none; name the "
                "global pooling: loss=Dense(pool=…)."
            )
        check_eval(self.module)

    @property
    def feature_size(self) -> int:
        """D, the length of the head's input."""
        return int(find_head(self.module, self.head).in_features)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of architecture and weights, the head excluded: equal fingerprints mean equal probes."""
        digest = hashlib.sha256()
        for name, module in self.module.named_modules():
            attention = isinstance(module, nn.MultiheadAttention)  # has a child; its extra_repr omits num_heads
            if not _within(name, self.head) and (attention or not any(module.children())):
                options = f"num_heads={module.num_heads}" if attention else module.extra_repr()
                digest.update(f"{name}:{type(module).__qualname__}({options})\n".encode())
        for name, value in self.module.state_dict().items():
            if not _within(name, self.head) and not name.endswith("num_batches_tracked"):  # no part of the function
                digest.update(f"{name}:{value.dtype}{list(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def computing_in(self, dtype: Dtype) -> Probe:
        """Return the probe with another `dtype`; it shares the network."""
        if dtype == self.dtype:
            return self
        other = replace(self, dtype=dtype)
        vars(other)["fingerprint"] = self.fingerprint  # of the same weights: not computed again
        return other

    def features(self, images: Tensor) -> Tensor:
        """Return the head's input; gradients flow if enabled.

        Args:
            images: ``[B, 3, H, W]``, preprocessed, on the module's device.

        Returns:
            ``[B, D]``, or the feature map ``[B, h, w, D]`` of a probe with `pool`.

        Raises:
            RuntimeError: If the head does not take part in the forward pass, or not exactly once.
            ValueError: If the head's input is not ``[B, D]``, or the pool's not ``[B, D, h, w]``.
        """
        seen: list[Tensor] = []
        tap = self.head if self.pool is None else self.pool
        handle = self.module.get_submodule(tap).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            bfloat16 = self.dtype == "bfloat16"
            with torch.autocast(images.device.type, torch.bfloat16) if bfloat16 else nullcontext():
                self.module(images)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise RuntimeError(
                f"Probe: expected the head {tap!r} to run once in a forward pass, it ran {len(seen)} times; name "
                "another head."
            )
        if self.pool is not None:
            if seen[0].ndim != 4:
                raise ValueError(
                    f"Probe: expected a feature map [B, D, h, w] at {tap!r}, got {list(seen[0].shape)}; name the "
                    "global pooling: loss=Dense(pool=…)."
                )
            return seen[0].permute(0, 2, 3, 1)
        if seen[0].shape != (len(images), self.feature_size):
            raise ValueError(
                f"Probe: expected features [{len(images)}, {self.feature_size}] at the head {self.head!r}, got "
                f"{list(seen[0].shape)}; name a head that sees one vector per image."
            )
        return seen[0]

    def layers(self, only: Sequence[str] | None = None, *, include_batchnorm: bool = False) -> list[Layer]:
        """Return the layers an embedding consists of, in the module's order, as slices of ``[0, K)``.

        Args:
            only: Module names or prefixes (``["layer3", "layer4"]``); default: the whole probe.
            include_batchnorm: Also the scale of every BatchNorm2d, one entry per channel (the layout of the authors'
                Monte-Carlo embeddings: 17,024 for a ResNet-34 instead of 8,512).

        Returns:
            Conv2d and Linear layers except the head, the packed in-projections of ``nn.MultiheadAttention`` (kind
            ``"linear"``, 3·D filters, ``"….in_proj"``), and BatchNorm2d if asked for.

        Raises:
            TypeError: If `only` is not a list of names.
            ValueError: If `only` is empty, a name in it matches nothing, or no layer is left.
            NotImplementedError: If two layers share one weight, or one is computed (``weight_norm``, …).
        """
        if isinstance(only, str) or (only is not None and not all(isinstance(name, str) for name in only)):
            raise TypeError(f"Probe: expected layers as a list of names, got {only!r}; pass for instance ['layer4'].")
        if only is not None and not only:
            raise ValueError("Probe: expected layers to name at least one module, got none; pass None for all of them.")
        named = dict(named_filters(self.module, include_batchnorm))
        named = {name: kind for name, kind in named.items() if not _within(name, self.head)}
        for wanted in only or ():
            if not any(_within(name, wanted) for name in named):
                raise ValueError(
                    f"Probe: expected layers to name modules of {self.name} that hold filters, got {wanted!r}; they "
                    f"are: {', '.join(named)}."
                )
        found, owners, stop = [], dict[int, str](), 0
        for name, kind in named.items():
            unwanted = only is not None and not any(_within(name, wanted) for wanted in only)
            if unwanted or (self.pool is not None and _within(name, self.pool)):
                continue
            weight = self.weight(name)
            if id(weight) in owners:
                raise NotImplementedError(
                    f"Probe: layers {owners[id(weight)]!r} and {name!r} share one weight, whose per-sample gradient is "
                    "not the sum of theirs squared; pass layers=[…] with the others."
                )
            owners[id(weight)] = name
            start, stop = stop, stop + len(weight)
            found.append(Layer(name, kind, start, stop, weight[0].numel()))
        if not found:
            raise ValueError(f"Probe: {self.name} has no Conv2d or Linear layer besides its head {self.head!r}.")
        if only is None and (left_out := list(undescribed(self.module))):
            warnings.warn(
                f"the embedding has no entries for {', '.join(left_out[:5])}{' …' if len(left_out) > 5 else ''}: only "
                "Conv2d and Linear layers are described; pass layers=[…] to choose among them and silence this",
                Task2VecWarning,
                stacklevel=2,
            )
        return found

    def weight(self, layer: str) -> nn.Parameter:
        """Return the parameter whose rows are a layer's filters.

        Args:
            layer: Name of one of `layers`.

        Returns:
            The parameter, ``[C_out, …]``.

        Raises:
            NotImplementedError: If the weight is computed from other parameters (``weight_norm``, …).
        """
        return filter_weight(self.module, layer)

    def prior(self, layers: Sequence[Layer], scale: float) -> Tensor:
        """Return the trivial embedding ``t₀ = c·λ_l²`` of every filter, 1/λ_l² the mean squared weight of its layer.

        Args:
            layers: As `layers` returns them.
            scale: The constant c = 2κ in nats (`VariationalSettings.kappa`).

        Returns:
            ``[K]`` float64 on the CPU, nats² per weight² like the Fisher.

        Source:
            Achille et al. 2019, §3 (second-order optimum of the robust objective, data term zero).
        """
        prior = torch.empty(layers[-1].stop, dtype=torch.float64)
        for layer in layers:
            mean_square = self.weight(layer.name).detach().double().square().mean().item()
            prior[layer.start : layer.stop] = scale / max(mean_square, torch.finfo(torch.float32).tiny)
        return prior


@torch.inference_mode(mode=False)  # or its parameters could have no gradients
def load_probe(
    probe: str | nn.Module | Probe = "resnet34",
    *,
    weights: Any = None,
    head: str | None = None,
    preprocess: Preprocess | Literal["weights"] | None = "weights",
    image_size: int | None = None,
) -> Probe:
    """Return a probe from a name or from a module of your own.

    Args:
        probe: A torchvision name (`TORCHVISION_PROBES`), a model of timm by ``"timm:NAME"`` (the extra ``timm``),
            ``"tiny"`` (ships with the package, no download), a module in eval mode, or a `Probe`, returned as it is.
        weights: For a name: a torchvision weights enum or its name (default ``"IMAGENET1K_V1"``, as in the paper), the
            path of a ``.safetensors`` or ``.pth`` checkpoint (read without running code; its head may have any number
            of classes), ``"offline"`` (the weights of ``"tiny"``), or ``"random"`` (seed 0, as a control). For a
            module: a path, loaded into that module, or None to keep its weights.
        head: Name of the ``nn.Linear`` to refit; default: ``fc``, ``head`` or ``classifier``, else the last one.
        preprocess: Default: what the weights were trained with (for modules, checkpoints and random weights
            torchvision's ImageNet preset, 256 → 224 px). None where tasks give preprocessed tensors.
        image_size: Side of another crop in pixels; the resize changes in proportion.

    Returns:
        The probe, in eval mode.

    Raises:
        ValueError: If a name, head or checkpoint does not fit, or a module is in train mode.
        TypeError: If an argument has the wrong type.
        NotImplementedError: If weights were trained with a preprocessing other than resize, crop, normalise.
        RuntimeError: If weights must be downloaded and cannot be, or timm is not installed.
    """
    if isinstance(probe, Probe):
        if weights is not None or head is not None or preprocess != "weights" or image_size is not None:
            raise ValueError("load_probe: expected no further options with a Probe; give them when it is loaded.")
        return probe
    expected: Preprocess | None = Preprocess()
    if preprocess is not None and preprocess != "weights" and not isinstance(preprocess, Preprocess):
        raise TypeError(f"load_probe: expected preprocess to be a Preprocess, None or 'weights', got {preprocess!r}.")
    if isinstance(probe, nn.Module):
        module = _unwrapped(probe)
        name, source = type(module).__name__, "as given"
        if weights is not None:
            source = os.path.basename(os.fspath(weights))
            load_state(module, read_checkpoint(weights), f"{name} with {weights}")
    elif not isinstance(probe, str):
        raise TypeError(f"load_probe: expected a name, an nn.Module or a Probe, got {type(probe).__name__}.")
    else:
        name = probe
        module, source, expected = _build(probe, weights)
        module.eval()
    if preprocess != "weights":
        expected = preprocess
    if image_size is not None:
        if expected is None:
            raise ValueError("load_probe: expected either preprocess=None or an image_size, got both; drop one.")
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"load_probe: expected image_size as a whole number of pixels >= 1, got {image_size!r}.")
        expected = expected.with_size(image_size)
    return Probe(module, head or default_head(module), name, source, expected)


def _build(name: str, weights: Any) -> tuple[nn.Module, str, Preprocess]:
    """Return (module, where its weights are from, their preprocessing) of a named probe."""
    if name == OFFLINE_PROBE:
        return _build_tiny(weights)
    if name.startswith(TIMM_PREFIX):
        return timm_weights(name.removeprefix(TIMM_PREFIX), weights)
    if name not in TORCHVISION_PROBES:
        raise ValueError(
            f"load_probe: expected {OFFLINE_PROBE!r}, a model of timm ('{TIMM_PREFIX}resnet34.a1_in1k') or one of "
            f"{', '.join(TORCHVISION_PROBES)}; got {name!r}. Any other network can be passed as a module."
        )
    if weights == "offline":
        raise ValueError(
            f"load_probe: the weights that ship with the package fit the probe {OFFLINE_PROBE!r}, not {name!r}; pass "
            f"probe={OFFLINE_PROBE!r}, or the path of a checkpoint of {name}."
        )
    return torchvision_weights(name, weights)


def _build_tiny(weights: Any) -> tuple[nn.Module, str, Preprocess]:
    from .tiny import TINY_MEAN, TINY_SIZE, TINY_STD, TinyResNet, tiny_weights_path

    if weights not in (None, "offline", "random"):
        raise ValueError(f"load_probe: expected weights 'offline' or 'random' for {OFFLINE_PROBE!r}, got {weights!r}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TinyResNet()
    if weights != "random":
        load_state(module, read_checkpoint(tiny_weights_path()), "the tiny probe")
    return module, weights or "offline", Preprocess(TINY_SIZE, TINY_SIZE, TINY_MEAN, TINY_STD)


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


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


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside DataParallel and torch.compile wrappers: they change its names and fingerprint."""
    while isinstance(module, nn.DataParallel) or hasattr(module, "_orig_mod"):
        module = module.get_submodule("module" if isinstance(module, nn.DataParallel) else "_orig_mod")
    return module


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Set ``requires_grad`` of the module's parameters to False inside the block, and restore it afterwards."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
