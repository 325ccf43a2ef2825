"""From a task to its embedding: `fisher_embed`. Its steps are in features.py and steps.py."""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._util.warnings import Task2VecWarning
from ..data import ClassLabel, ImageCache, Preprocess, as_task
from ..embedding import Embedding, HeadInfo, ProbeInfo
from ..probe.feed import ImageFeed, choose_device, on_device
from ..probe.load import load_probe
from ..probe.precision import arithmetic, check_dtype
from ..probe.probe import Probe
from ..settings import EmbedSettings
from ..words import AnyEstimator, Decoder, Dtype, LossName, OnError
from .features import FirstPass, check_read, read_features, twins
from .steps import Measured, draw_images, fit_task_head, measure_fisher, measure_robust_fisher
from .work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .._util.progress import Pass
    from ..data import Task, TaskSource
    from ..fisher.cross_fit import CrossFitHead
    from ..fisher.head import Head
    from ..losses import Loss
    from ..probe.layers import Layer

_TWINS = 0.1
"""Share of images in several classes that is worth a warning."""

SKIPPED = "skipped"
"""The entry of an embedding's metadata that lists the images that could not be read."""


@torch.inference_mode(mode=False)  # a network built in inference mode has no gradients
def fisher_embed(
    task: TaskSource,
    probe: str | nn.Module | Probe = "resnet34",
    *,
    settings: EmbedSettings | None = None,
    weights: Any = None,
    image_size: int | None = None,
    decoder: Decoder | None = None,
    loss: LossName | Loss | None = None,
    estimator: AnyEstimator | None = None,
    num_samples: int | None = None,
    rel_error: float | None = None,
    seed: int | None = None,
    dtype: Dtype | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    image_cache: ImageCache | None = None,
    on_error: OnError = "raise",
    name: str | None = None,
    progress: bool | Pass | None = None,
) -> Embedding:
    """Return the Task2Vec embedding of a labelled image data set: one number per filter of a fixed probe.

    ``F[o] = 1/(N·P) Σ_n ‖∂ log p(y|x_n) / ∂w_o‖²`` with y drawn from the model whose head was refitted to the task; the
    data's labels are used only to fit the head. There are two passes over the images: features (to fit the head), then
    the Fisher.

    Args:
        task: A folder of class folders, a list of (path, label), a map-style torch data set of (image, label), or a
            `Task`. Images: PIL of any mode, tensors or arrays. Labels: integers 0…C−1, or what `loss` says.
        probe: A name (torchvision's, ``"timm:NAME"``, or ``"tiny"``, which ships with the package: see `load_probe`), a
            module in eval mode, or a `Probe` (load it once for many tasks, or to choose its head or preprocessing).
        settings: Everything that decides the numbers; the six options after `decoder` override it. Default:
            ``EmbedSettings()``.
        weights: Weights of a named probe: see `load_probe`. Default: ImageNet (``"IMAGENET1K_V1"``), downloaded once by
            torchvision.
        image_size: Side of another crop in pixels; the resize changes in proportion. Default: that of the weights.
        decoder: ``"draft"`` decodes large JPEG files at a fraction of their size: faster, other numbers; see
            `Preprocess`.
        loss: What the labels are; default ``"cross_entropy"``, one class per image. `EmbedSettings` describes this and
            the next five options.
        estimator: How the expectation over labels is taken; default ``"signed"``.
        num_samples: At most this many images, drawn at random; default: all.
        rel_error: Stop when the relative standard error of the Fisher is at most this; default: take all images.
        seed: Seed of every random choice; default 0. The same seed gives the same embedding.
        dtype: What the network computes in; default ``"float32"``.
        device: Where the probe runs; default: a module's own device, else CUDA where there is one.
        batch_size: Images per batch.
        num_workers: Processes that decode images; 0: this process. Default: for a GPU its share of the cores, else 0.
        image_cache: Keeps decoded images, so that each is decoded once; default: one of 1 GiB of memory and a temporary
            file. ``ImageCache(0, 0)`` decodes in every pass; `ImageCache` describes budgets, and a folder for later
            runs.
        on_error: What happens to an image that cannot be read: ``"raise"``, or ``"skip"`` to leave it out and count it.
        name: Name of the task; default: the folder's or data set's own name.
        progress: Whether to show a progress bar, or a function that shows it; default: if standard error is a terminal.

    Returns:
        The `Embedding`: fisher ``[K]`` and prior ``[K]`` float64 in nats² per weight², error bars, and its
        settings. K = 4,800 for ResNet-18, 8,512 for ResNet-34.

    Raises:
        ValueError: If the task is empty, has a single class, gaps in its labels, targets that do not vary or unreadable
            images, the probe is in train mode, a checkpoint does not fit, or an option is out of range.
        TypeError: If task, labels or options are of the wrong type.
        NotImplementedError: If a layer's weight is shared, reused, computed, or used by other than a Conv2d or Linear
            layer (``EmbedSettings(layers=…)`` leaves it out), or options cannot be combined; before images are read.
        RuntimeError: If weights must be downloaded and cannot be, the device has no arithmetic of `dtype`, or the
            variational loss is not finite.

    Note:
        Only the weights of Conv2d and Linear layers are described, including packed attention projections: no biases,
        normalisation layers, class tokens, position embeddings or LayerScale.

        Labels that the data set does not list (``.targets``) are checked after the first pass. Memory beyond the
        probe's own: the features, ``4·N·D`` bytes, the image cache, and two batches. The probe is not changed, also
        after an exception or Ctrl-C. Sums are in float64.

        `embed_task` does the same with a shared feature cache.

    Source:
        Achille et al., Task2Vec, ICCV 2019 (arXiv 1902.03545), §2 and §3.
    """
    settings = (settings or EmbedSettings()).override(
        loss=loss, estimator=estimator, num_samples=num_samples, rel_error=rel_error, seed=seed, dtype=dtype
    )
    work = Work(device, batch_size, num_workers, on_error, progress, image_cache)
    source = as_task(task, name=name, target=settings.loss_object.target)
    net = load_probe(probe, weights=weights, image_size=image_size, decoder=decoder)
    if isinstance(probe, str):
        work = work.on(choose_device(net.module, device, owned=True))
    return embed_task(source, net, settings, work)


def embed_like(
    known: ProbeInfo,
    settings: EmbedSettings,
    task: TaskSource,
    probe: str | nn.Module | Probe | None = None,
    *,
    weights: Any = None,
    work: Work | None = None,
) -> Embedding:
    """Return the embedding of a task, made as another embedding was: ``embed_like(e.probe, e.settings, task)``.

    Args:
        known: The other embedding's probe.
        settings: The other embedding's.
        task: As for `fisher_embed`.
        probe: The network; default: by the name that it has in `known`.
        weights: The file of its weights, where those are a file.
        work: Where and how.

    Returns:
        The embedding, which can be compared with the other.

    Raises:
        ValueError: If the probe is not the other embedding's.
    """
    source = as_task(task, target=settings.loss_object.target)
    if not isinstance(probe, Probe):
        preprocess = None if known.preprocess is None else Preprocess.from_dict(known.preprocess)
        if weights is None and not isinstance(probe, nn.Module):
            weights = known.weights
            if Path(weights).suffix and not Path(weights).exists():  # the name of a file, wherever that was
                raise ValueError(
                    f"embed_like: expected the file {weights} that the weights of {known.name} were read from; pass "
                    "weights=FILE (on the command line --weights FILE)."
                )
        probe = load_probe(probe or known.name, weights=weights, head=known.head or None, preprocess=preprocess)
    if differences := known.differences(ProbeInfo.of(probe)):
        raise ValueError(
            f"embed_like: expected the probe of the embeddings to compare with, got another: {'; '.join(differences)}; "
            "pass weights=FILE (on the command line --weights FILE)."
        )
    work = work or Work()
    return embed_task(source, probe, settings, work.on(choose_device(probe.module, work.device, owned=True)))


@torch.inference_mode(mode=False)  # inference tensors have no versions, which the capture checks
def embed_task(task: Task, probe: Probe, settings: EmbedSettings, work: Work) -> Embedding:
    """Return the embedding of a task, with options that `fisher_embed` does not have.

    Args:
        task: As `as_task` returns it, with the target of the settings' loss.
        probe: As `load_probe` returns it.
        settings: What decides the numbers.
        work: Where and how.

    Returns:
        See `fisher_embed`, which also says what is raised.
    """
    loss = settings.loss_object
    probe = loss.tap(probe).computing_in(settings.dtype)
    layers = settings.check(probe)
    device = choose_device(probe.module, work.device, owned=False)
    check_dtype(settings.dtype, probe.module, device)
    indices = draw_images(task, settings)
    cache = ImageCache() if work.image_cache is None else work.image_cache
    feed = ImageFeed(task, probe, device, work.batch_size, work.num_workers, work.progress, cache)
    with arithmetic(settings.dtype, device), on_device(probe.module, device), feed:
        seen = read_features(feed, loss, layers, indices, work)
        check_read(task, indices, seen)
        head, targets = fit_task_head(seen, settings, device)
        steps = feed, seen, layers, head, targets, settings
        if settings.variational is None:
            measured = measure_fisher(*steps, cuda_graphs=work.cuda_graphs)
        else:
            measured = measure_robust_fisher(*steps)
    if work.image_cache is None:
        cache.close()
    return embedding_of(task, probe, seen, indices, layers, head, measured, settings)


def embedding_of(
    task: Task,
    probe: Probe,
    seen: FirstPass,
    indices: Tensor,
    layers: Sequence[Layer],
    head: Head | CrossFitHead,
    measured: Measured,
    settings: EmbedSettings,
) -> Embedding:
    """Return the embedding that the steps made, and warn of what is wrong with it; arguments as the steps have them."""
    _check_reached(settings, measured, task.name)
    _warn_of(task, seen, len(indices), measured)
    info = HeadInfo.of(head)
    return Embedding(
        fisher=measured.fisher,
        prior=measured.prior,
        layers=tuple(layers),
        probe=ProbeInfo.of(probe),
        head=info,
        settings=settings,
        num_samples=measured.samples,
        num_skipped=len(seen.skipped),
        num_images=len(task),
        name=task.name,
        classes=task.classes if task.classes is not None and len(task.classes) == info.num_outputs else None,
        group_means=measured.group_means,
        prior_scale=measured.prior_scale,
        epoch_nll=measured.epoch_nll,
        task_digest=task.digest(),
        metadata=task.metadata | ({SKIPPED: [one.where for one in seen.skipped]} if seen.skipped else {}),
        version=importlib.metadata.version("task2vec_ext"),
    )


def _check_reached(settings: EmbedSettings, measured: Measured, name: str) -> None:
    """Warn if the images ended before the error was small enough."""
    if settings.rel_error is not None and measured.relative_error > settings.rel_error:
        few = math.isinf(measured.relative_error)
        reached = "an error unknown of so few" if few else f"{measured.relative_error:.3g}"
        warnings.warn(
            f"fisher_embed: expected a relative error of at most {settings.rel_error:g}, {name!r} came to {reached} "
            f"after all {measured.samples} images; raise rel_error, or take more images (num_samples)",
            Task2VecWarning,
            stacklevel=7,  # the caller of fisher_embed, behind embed_task and torch's two decorators
        )


def _warn_of(task: Task, seen: FirstPass, images: int, measured: Measured) -> None:
    """Warn of images that were left out, and of an embedding that cannot be compared."""
    if skipped := seen.skipped:
        names = "; ".join(one.where for one in skipped[:10]) + (f"; and {len(skipped) - 10} more" * (len(skipped) > 10))
        warnings.warn(
            f"fisher_embed: left out {len(skipped)} of {images} images of {task.name!r} that could not be read: "
            f"{names}. Why the first: {skipped[0].reason} (embedding.metadata[{SKIPPED!r}] lists all)",
            Task2VecWarning,
            stacklevel=7,
        )
    features, targets = seen.of_task.features, seen.of_task.targets
    if isinstance(task.target, ClassLabel) and (same := twins(features, targets)) > _TWINS * len(features):
        warnings.warn(
            f"fisher_embed: expected other images in every class, got {same} of {len(features)} images of "
            f"{task.name!r} that the probe cannot tell from an image of another class; are they in several classes?",
            Task2VecWarning,
            stacklevel=7,
        )
    if not measured.fisher.any():
        warnings.warn(
            f"fisher_embed: expected a task whose classes differ, got an embedding of norm 0 for {task.name!r}, which "
            "has no distance to others; does every class have the same images?",
            Task2VecWarning,
            stacklevel=7,
        )
