"""The probe: one fixed, pre-trained network with a named head, its preprocessing and its fingerprint."""

from __future__ import annotations

import hashlib
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._util.warnings import Task2VecWarning
from ..data.preprocess import Preprocess
from ..words import Dtype
from .layers import OUTPUT, Layer, filter_weight, head_layer, layer_parameters, named_filters, undescribed, within
from .trial import Tried, any_trial, as_vectors, reached, trial, wrong_size
from .usable import check_eval, check_usable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@dataclass(frozen=True, eq=False)
class Probe:
    """The fixed network that embeddings are computed with.

    Args:
        module: A network in eval mode that maps ``[B, 3, H, W]`` to an output through the head.
        head: Name of the layer inside that is refitted for every task and never part of the embedding: an ``nn.Linear``
            or a 1×1 convolution, whose input is averaged over positions. ``"features"`` if there is none: the output
            itself is the feature vector.
        name: Architecture, for display only.
        weights: Where the weights came from, for display only.
        preprocess: The preprocessing the weights were trained with; None where tasks give preprocessed tensors.
        pool: Name of the module whose input is the feature map. If given, there is a feature vector for each cell of
            the map instead of one for each image. Like the head, it is not part of the embedding.
        random_head: Whether the head's own weights are random, as a checkpoint without them leaves them: the network's
            outputs mean nothing. Embeddings refit the head and do not care.
        dtype: What the network computes in; `EmbedSettings.dtype` decides it for an embedding.

    Raises:
        ValueError: If head or pool is not found, or the module is in train mode or has no weights that can be used.
        TypeError: If the head is neither an ``nn.Linear`` nor a 1×1 convolution, or the module is TorchScript.
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
        check_usable(self.module)
        head_layer(self.module, self.head)
        if self.pool is not None and self.pool not in dict(self.module.named_modules()):
            raise ValueError(
                f"Probe: expected a module named {self.pool!r} whose input is the feature map, found none; name the "
                "global pooling: loss=Dense(pool=…)."
            )
        check_eval(self.module)

    @property
    def feature_size(self) -> int:
        """D, the length of the head's input."""
        head = head_layer(self.module, self.head)
        if head is None:
            return self._tried.feature_size
        return int(head.in_features if isinstance(head, nn.Linear) else head.in_channels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of architecture and weights, the head excluded: equal fingerprints mean equal probes."""
        digest = hashlib.sha256()
        for name, module in self.module.named_modules():
            attention = isinstance(module, nn.MultiheadAttention)  # has a child; its extra_repr omits num_heads
            if not self._in_head(name) and (attention or not any(module.children())):
                options = f"num_heads={module.num_heads}" if attention else module.extra_repr()
                digest.update(f"{name}:{type(module).__qualname__}({options})\n".encode())
        for name, value in self.module.state_dict().items():
            if not self._in_head(name) and not name.endswith("num_batches_tracked"):  # no part of the function
                digest.update(f"{name}:{value.dtype}{list(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def computing_in(self, dtype: Dtype) -> Probe:
        """Return the probe with another `dtype`; it shares the network."""
        if dtype == self.dtype:
            return self
        other = replace(self, dtype=dtype)
        vars(other).update(fingerprint=self.fingerprint, _tried=self._tried)  # of the same weights: not computed again
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
        if (tap := self._tap) is None:
            return self._features([], self._run(images), len(images))
        seen: list[Tensor] = []

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(next(iter((*args, *kwargs.values()))))

        handle = self.module.get_submodule(tap).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            output = self._run(images)
        finally:
            handle.remove()
        return self._features(seen, output, len(images))

    def _run(self, images: Tensor) -> Any:
        bfloat16 = self.dtype == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            return self.module(images)

    @property
    def _tap(self) -> str | None:
        """The module whose input holds the features; None if they are the network's output."""
        if self.pool is not None:
            return self.pool
        return None if head_layer(self.module, self.head) is None else self.head

    def _in_head(self, name: str) -> bool:
        return within(name, self.head) and head_layer(self.module, self.head) is not None

    def _features(self, seen: list[Tensor], output: Any, samples: int) -> Tensor:
        """Return the features of a forward pass, given what the tap saw, call by call."""
        if (tap := self._tap) is None:
            vectors = as_vectors(output)
            if vectors is None or len(vectors) != samples:
                got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(
                    f"Probe: expected an output [{samples}, D], the features, of {self.name} with head={self.head!r}; "
                    f"got {got}; wrap it in a module that returns one vector per image."
                )
            return vectors
        if len(seen) != 1:
            raise RuntimeError(
                f"Probe: expected the head {tap!r} to run once in a forward pass, it ran {len(seen)} times; leave head "
                "out and it is looked for."
            )
        features = seen[0]
        if self.pool is not None:
            if features.ndim != 4:
                raise ValueError(
                    f"Probe: expected a feature map [B, D, h, w] at {tap!r}, got {list(features.shape)}; name the "
                    "global pooling: loss=Dense(pool=…)."
                )
            return features.permute(0, 2, 3, 1)
        if isinstance(self.module.get_submodule(tap), nn.Conv2d) and features.ndim == 4:
            features = features.mean((2, 3))
        if features.shape != (samples, self.feature_size):
            raise ValueError(
                f"Probe: expected features [{samples}, {self.feature_size}] at the head {self.head!r}, got "
                f"{list(seen[0].shape)}; name a head that sees one vector per image."
            )
        return features

    @cached_property
    def _tried(self) -> Tried:
        """What a forward pass of noise shows, before any image is read."""
        tap = self._tap
        try:
            if self.preprocess is None:
                seen = any_trial(self.module, None, tap or OUTPUT)
            else:
                seen = trial(self.module, self.preprocess.crop, tap or OUTPUT)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the network raises
            if self.preprocess is None and tap is not None:
                return Tried(frozenset(), True, -1)  # of unknown size: the first image will show
            side = None if self.preprocess is None else self.preprocess.crop
            raise wrong_size(self.module, side, self.name, error) from None
        given = [] if tap is None else seen.layers[tap].inputs
        features = self._features(given, seen.output[0] if len(seen.output) == 1 else seen.output, len(seen.image))
        if tap == self.head and seen.output and seen.depends(features) and not seen.may_be_head(tap):
            choices = ", ".join(map(repr, seen.candidates()[:5])) or f"none; {OUTPUT!r} takes the output as features"
            raise ValueError(
                f"Probe: expected a head through which all of {self.name}'s output passes, but it depends on the "
                f"images around {tap!r}, too (a gate or a branch?); layers that can be the head: {choices}."
            )
        leaves = reached(features)
        unreached = [
            name
            for name, _ in named_filters(self.module, include_batchnorm=True)
            if not any(id(p) in leaves or not p.is_floating_point() for p in layer_parameters(self.module, name))
        ]
        return Tried(frozenset(unreached), seen.depends(features), features.shape[-1])

    def layers(self, only: Sequence[str] | None = None, *, include_batchnorm: bool = False) -> list[Layer]:
        """Return the layers an embedding consists of, in the module's order, as slices of ``[0, K)``.

        Args:
            only: Module names or prefixes (``["layer3", "layer4"]``); default: the whole probe.
            include_batchnorm: Also the scale of every BatchNorm2d, one entry per channel (the layout of the authors'
                Monte-Carlo embeddings: 17,024 for a ResNet-34 instead of 8,512).

        Returns:
            Conv2d and Linear layers except the head, the packed in-projections of ``nn.MultiheadAttention`` (kind
            ``"linear"``, 3·D filters, ``"….in_proj"``), and BatchNorm2d if asked for. By default without those on
            which the features do not depend (auxiliary and unused branches), with a warning.

        Raises:
            TypeError: If `only` is not a list of names.
            ValueError: If `only` is empty, a name in it matches nothing, no layer is left, the network does not take
                images of this size, or its output depends on the images around the head, too.
            NotImplementedError: If two layers share one weight, or one is computed (``weight_norm``, …).
        """
        if isinstance(only, str) or (only is not None and not all(isinstance(name, str) for name in only)):
            raise TypeError(f"Probe: expected layers as a list of names, got {only!r}; pass for instance ['layer4'].")
        if only is not None and not only:
            raise ValueError("Probe: expected layers to name at least one module, got none; pass None for all of them.")
        named = dict(named_filters(self.module, include_batchnorm))
        named = {name: kind for name, kind in named.items() if not self._in_head(name)}
        for wanted in only or ():
            if not any(within(name, wanted) for name in named):
                raise ValueError(
                    f"Probe: expected layers to name modules of {self.name} that hold filters, got {wanted!r}; they "
                    f"are: {', '.join(named)}."
                )
        unused = self._unused(named) if only is None else set()
        found, owners, stop = [], dict[int, str](), 0
        for name, kind in named.items():
            unwanted = name in unused or (only is not None and not any(within(name, wanted) for wanted in only))
            if unwanted or (self.pool is not None and within(name, self.pool)):
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
        if unused:
            some = sorted(unused, key=list(named).index)
            warnings.warn(
                f"the embedding leaves out {', '.join(some[:5])}{f' and {len(some) - 5} more' if len(some) > 5 else ''}"
                f": no gradient of {self.name}'s features reaches them (unused or auxiliary branches, or torch.no_grad "
                "in its forward pass); pass layers=[…] to choose and silence this",
                Task2VecWarning,
                stacklevel=2,
            )
        return found

    def _unused(self, named: Iterable[str]) -> set[str]:
        """Return which of these layers the features do not depend on."""
        tried = self._tried
        if not tried.differentiable:
            raise ValueError(
                f"Probe: expected features of {self.name} with gradients, but they reach no image: its forward pass "
                "runs under torch.no_grad() or detaches; remove that, or pass layers=[…] with those that come after it."
            )
        return {name for name in named if name in tried.unreached and not within(name, self.pool or self.head)}

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
