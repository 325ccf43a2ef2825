"""The front door: from a task to its embedding."""

from __future__ import annotations

import importlib.metadata
import math
import operator
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch

from .._util.warnings import Task2VecWarning
from ..data import Batch, ClassLabel, Preprocess, as_task, check_labels, draw, read_labels
from ..embedding import Embedding, HeadInfo, ProbeInfo
from ..fisher.head import HeadMethod, fit_head
from ..fisher.head import head_l2 as resolve_l2
from ..fisher.per_sample import ANY_ESTIMATORS, AnyEstimator, Estimator, FisherSum, sum_fisher
from ..fisher.variational import (
    DEFAULT_KAPPA,
    Noise,
    Variational,
    VariationalRecipe,
    check_layers,
    variational_epochs,
    variational_options,
)
from ..jackknife import FEWEST_GROUPS, GROUPS
from ..losses import Loss, LossName, as_loss
from ..probe.feed import ImageFeed, choose_device, on_device, same_as_before, with_targets
from ..probe.probe import Probe, load_probe
from ._first_pass import first_pass
from .team import Team

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

    from .._util.progress import Pass
    from ..data import TaskSource
    from ..data.loader import OnError
    from ..fisher.variational import RobustFisher
    from .feature_cache import FeatureCache

PRIOR_SCALE = 2 * DEFAULT_KAPPA
"""c of the prior c/λ_l²: at the optimum of the robust objective a filter's precision is F/c + λ_l² (variational.py)."""


@torch.inference_mode(mode=False)  # inference tensors have no versions, which the capture checks
def fisher_embed(
    task: TaskSource,
    probe: str | nn.Module | Probe = "resnet34",
    *,
    weights: Any = None,
    head: str | None = None,
    loss: LossName | Loss = "cross_entropy",
    estimator: AnyEstimator = "signed",
    num_samples: int | None = None,
    rel_error: float | None = None,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    include_batchnorm: bool = False,
    head_method: HeadMethod = "lbfgs",
    head_l2: float | None = None,
    class_balanced: bool = False,
    preprocess: Preprocess | Literal["weights"] | None = "weights",
    image_size: int | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    on_error: OnError = "raise",
    name: str | None = None,
    error_bars: bool = True,
    progress: bool | Pass | None = None,
    process_group: ProcessGroup | None = None,
    feature_cache: FeatureCache | None = None,
    recipe: VariationalRecipe | None = None,
    beta: float | None = None,
    noise: Noise | None = None,
    epochs: int | None = None,
    epoch_samples: int | None = None,
) -> Embedding:
    """Return the Task2Vec embedding of a labelled image data set: one number per filter of a fixed probe.

    ``F[o] = 1/(N·P) Σ_n ‖∂ log p(y|x_n) / ∂w_o‖²`` with y drawn from the model whose head was refitted to the task; the
    data's labels enter through the head alone. Two passes over the images: features (to fit the head), then the
    Fisher.

    Args:
        task: A folder of class folders, a list of (path, label), a map-style torch data set of (image, label), or a
            `Task`. Images: PIL of any mode, tensors or arrays. Labels: integers 0…C−1, or what `loss` says.
        probe: A name (torchvision's, ``"timm:NAME"``, or ``"tiny"``, which ships with the package: see `load_probe`), a
            module in eval mode, or a `Probe` (load it once for many tasks).
        weights: Of a named probe: see `load_probe`. Default: ImageNet (``"IMAGENET1K_V1"``), downloaded once by
            torchvision.
        head: Name of the probe's last Linear layer; default: found, and told by the recipe's ``head_layer``.
        loss: What the labels are, and the model's distribution over them: ``"cross_entropy"`` (a class),
            ``"multilabel"`` (multi-hot tensors or lists of label indices), ``"regression"`` (numbers), ``"dense"`` (a
            mask), or an object of `task2vec_ext.losses`, for options and for unlabelled images:
            ``MultiLabel(label_smoothing=0.1)``, ``PseudoLabels(num_clusters=20)``. Class weights, smoothing and balance
            act on the head's fit alone: the Fisher is of the fitted model's own distribution.
        estimator: How the expectation over y is taken: ``"signed"`` (one backward pass, small variance), ``"exact"`` (C
            passes, none), ``"sampled"`` (the paper's; heavy-tailed), ``"empirical"`` (the data's label: not the
            Fisher). Or ``"variational"``: the paper's robust Fisher, from the noise that the weights bear, by SGD (see
            `task2vec_ext.variational`).
        num_samples: At most so many images, drawn at random, in proportion to the classes where there are any;
            default: all.
        rel_error: The Fisher is taken of images in random order until its relative standard error ‖SE‖₂/‖F‖₂ is at
            most this, say 0.05, or they end (a warning says so); the head is fitted to all of them. Default: take all.
        seed: Of every random choice: the draw, the estimator's noise, Adam. Same seed, same embedding.
        layers: Restrict to modules by name or prefix, e.g. ``["layer3", "layer4"]``.
        include_batchnorm: Add one entry per BatchNorm channel (the authors' Monte-Carlo layout).
        head_method: ``"lbfgs"`` (convex, to convergence) or ``"adam"`` (the authors' recipe).
        head_l2: L2 penalty of the head; default: 1e-2 for ``"lbfgs"``, 1e-4 (the authors') for ``"adam"``.
        class_balanced: Every class weighs the same in the head's fit, and `num_samples` draws equally many of each, as
            far as they go.
        preprocess: ``"weights"``: what the weights were trained with; a `Preprocess`; or None: the task gives the
            probe's input.
        image_size: Crop in pixels instead of the weights' own, the resize in proportion.
        device: Where the probe runs; default: a module's own device, else CUDA where there is one.
        batch_size: Images at a time.
        num_workers: Processes that decode images; 0: this one.
        on_error: An image that cannot be read raises, or is left out and counted (``"skip"``).
        name: What to call the task; default: the folder's or data set's own name.
        error_bars: Keep the means of 32 groups of images, ``4·32·K`` bytes, from which `task2vec_ext.uncertainty` has
            errors of all that is computed from the embedding; not kept of fewer than 8 images.
        progress: Show a progress bar; default: where standard error is a terminal; a function shows it its own way.
        process_group: The ranks of this `torch.distributed` group, all of which call this with the same arguments,
            share the images; each returns the same embedding, within 1e-6 of what one process makes. Not with
            `rel_error` or ``"variational"``.
        feature_cache: `FeatureCache` of an earlier call: features of files it knows are not computed again.
        recipe: Of ``"variational"``: ``"paper"`` (default) or ``"authors"``.
        beta: Of ``"variational"``: weight of the KL term; default: the authors' 1e-7, or what equals it in the paper's
            objective, 2e-7·N.
        noise: Of ``"variational"``: on ``"activations"`` (default) or ``"weights"``.
        epochs: Of ``"variational"``: passes; default 4.
        epoch_samples: Of ``"variational"``: images a pass, drawn with replacement, every class equally often; default
            10,000.

    Returns:
        The `Embedding`: fisher ``[K]`` and prior ``[K]`` float64 in nats² per weight², and the record of how it was
        made. K = 4,800 for ResNet-18, 8,512 for ResNet-34.

    Raises:
        ValueError: If the task is empty, has one class, gaps in its labels, targets that say nothing or unreadable
            images, the probe is in train mode, a checkpoint does not fit, or an option is unknown.
        TypeError: If task, labels or options are of the wrong type.
        NotImplementedError: If a layer's weight is shared, reused or computed, or used by other than a Conv2d or Linear
            layer: told before the work begins; ``layers`` leaves it out. If options are valid, but not together.
        RuntimeError: If weights must be downloaded and cannot be, or the variational loss is not finite.

    Note:
        Only Conv2d and Linear layers are described, packed attention projections among them: no biases, norms, class
        tokens, tables of positions or LayerScale.

        Labels that the data set does not list (``.targets``) are known, and checked, after the first pass. Memory
        beyond the probe's own is the cached features, ``4·N·D`` bytes, and one batch. The probe comes back untouched,
        also after an exception or Ctrl-C. Sums are in float64.

    Source:
        Achille et al., Task2Vec, ICCV 2019 (arXiv 1902.03545), §2 and §3.
    """
    if estimator not in ANY_ESTIMATORS:
        names = ", ".join(ANY_ESTIMATORS)
        raise ValueError(f"fisher_embed: expected estimator to be one of {names}; got {estimator!r}.")
    options = variational_options(
        estimator, recipe=recipe, beta=beta, noise=noise, epochs=epochs, epoch_samples=epoch_samples
    )
    if options is not None and rel_error is not None:
        raise ValueError("fisher_embed: expected rel_error with a per-sample estimator, got 'variational'; use epochs.")
    if process_group is not None and (options is not None or rel_error is not None):
        what = "rel_error" if options is None else "estimator 'variational'"
        raise NotImplementedError(f"fisher_embed: expected one process for {what}, got a process_group; leave it out.")
    loss = as_loss(loss)
    if options is not None and loss.name not in ("cross_entropy", "pseudo_labels"):
        raise NotImplementedError(
            f"fisher_embed: expected a loss of one class an image for 'variational', got {loss.name!r}; use 'signed'."
        )
    l2 = resolve_l2(head_method, head_l2, loss, class_balanced)
    seed = _whole("seed", seed, 0, 2**63 - 1)
    batch_size, num_workers = _whole("batch_size", batch_size, 1), _whole("num_workers", num_workers, 0)
    num_samples = None if num_samples is None else _whole("num_samples", num_samples, 1)
    if rel_error is not None and not 0 < rel_error < math.inf:
        raise ValueError(f"fisher_embed: expected rel_error > 0, say 0.05, got {rel_error}.")
    source = as_task(task, name=name, target=loss.target)
    if len(source) == 0:
        raise ValueError(f"fisher_embed: expected a task with images, {source.name!r} has none.")
    has_classes = isinstance(source.target, ClassLabel)
    known = read_labels(source) if has_classes and num_samples is not None else source.labels
    if known is not None:
        check_labels(known, who="fisher_embed")
    classes = torch.zeros(len(source), dtype=torch.int64) if known is None else known
    indices = draw(classes, num_samples, seed, balanced=class_balanced)
    indices = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(~seed))]  # not draw's stream
    net = loss.tap(load_probe(probe, weights=weights, head=head, preprocess=preprocess, image_size=image_size))
    parts = net.layers(layers, include_batchnorm=include_batchnorm)
    if options is not None:
        check_layers(parts)

    place = choose_device(net.module, device, owned=isinstance(probe, str))
    team = Team(process_group, f"the embedding of {source.name!r}")
    images = ImageFeed(source, net, place, batch_size, num_workers, progress)
    # Autocast of the caller's would narrow the gradients.
    with torch.autocast(place.type, enabled=False), on_device(net.module, place):
        seen = first_pass(images, loss, parts, indices, on_error, team, feature_cache)
        features, targets, indices = seen.of_task
        targets, num_outputs = team.first(lambda: loss.prepare(targets, features, seed))
        passes = features[0, ..., 0].numel() * num_outputs
        if estimator == "exact" and passes > loss.max_passes:
            raise ValueError(
                f"fisher_embed: expected at most {loss.max_passes} backward passes an image of 'exact' with loss "
                f"{loss.name!r}, got {passes:,}; use 'signed', or a smaller image_size."
            )
        fitted = team.first(
            lambda: fit_head(
                features.to(place),
                targets.to(place),
                num_outputs,
                loss=loss,
                method=head_method,
                l2=l2,
                class_balanced=class_balanced,
                seed=seed,
            ).to(torch.device("cpu"))  # which every rank has
        ).to(place)

        def fisher_of(rows: Tensor) -> FisherSum:
            with images.batches(indices[rows], "Fisher") as loaded:
                again = with_targets(same_as_before(loaded, seen.first), targets[rows])
                return sum_fisher(seen.probe, parts, fitted, again, cast("Estimator", estimator), seed, rel_error)

        if options is None:
            rows = team.share(torch.arange(len(indices)), GROUPS)
            result = FisherSum.joined(team.gather(team.attempt(lambda: fisher_of(rows))))
            measured = _Measured.of(result, net.prior(parts, PRIOR_SCALE), error_bars)
        else:
            drawn = _epochs(images, indices, targets, options, seed)
            *_, robust = variational_epochs(seen.probe, parts, fitted, drawn, len(indices), options, seed)
            measured = _Measured.of_robust(robust, options, len(indices))
    if rel_error is not None:
        _check_reached(rel_error, result, source.name)
    return Embedding(
        fisher=measured.fisher,
        prior=measured.prior,
        layers=tuple(parts),
        probe=ProbeInfo(net.name, net.weights, net.fingerprint),
        head=HeadInfo(head_method, num_outputs, fitted.score, fitted.nll, l2, class_balanced, loss.metric),
        recipe={
            "loss": loss.options(),
            "estimator": estimator,
            "seed": seed,
            "num_samples": num_samples,
            "rel_error": rel_error,
            "preprocess": None if net.preprocess is None else net.preprocess.to_dict(),
            "head_layer": net.head,
            "layers": None if layers is None else list(layers),
            "include_batchnorm": include_batchnorm,
            **measured.record,
            "task_digest": source.digest(),
            "task_metadata": source.metadata,
            "version": importlib.metadata.version("task2vec_ext"),
        },
        num_samples=measured.samples,
        num_skipped=seen.num_skipped,
        name=source.name,
        classes=source.classes if source.classes is not None and len(source.classes) == num_outputs else None,
        group_means=measured.group_means,
    )


class _Measured(NamedTuple):
    """What an estimator gives an embedding."""

    fisher: Tensor
    prior: Tensor
    samples: int
    record: dict[str, Any]
    """For the recipe."""
    group_means: Tensor | None = None

    @classmethod
    def of(cls, result: FisherSum, prior: Tensor, error_bars: bool) -> _Measured:
        groups = result.groups.means.float() if error_bars and len(result.groups.sizes) >= FEWEST_GROUPS else None
        return cls(result.mean, prior, result.samples, {"prior_scale": PRIOR_SCALE}, groups)

    @classmethod
    def of_robust(cls, robust: RobustFisher, options: Variational, images: int) -> _Measured:
        record = {
            "prior_scale": 2 * robust.kappa,
            "variational": asdict(options),
            "variational_nll": list(robust.nll),
        }
        return cls(robust.fisher, robust.prior, images, record)


def _epochs(
    images: ImageFeed, indices: Tensor, targets: Tensor, options: Variational, seed: int
) -> Iterator[Iterator[Batch]]:
    """Yield the batches of each epoch; workers and progress bar end with it."""
    for number, chosen in enumerate(options.epochs_of(targets, seed), 1):
        with images.batches(indices[chosen], f"epoch {number} of {options.epochs}") as loaded:
            yield with_targets(loaded, targets[chosen])


def _check_reached(target: float, result: FisherSum, name: str) -> None:
    """Warn if the images ended before the error was small enough."""
    few = len(result.groups.sizes) < FEWEST_GROUPS
    reached = math.inf if few else result.groups.relative_error()
    if reached > target:
        so = "unknown of so few" if few else f"{reached:.3g}"
        warnings.warn(
            f"fisher_embed: expected a relative error of at most {target:g}, {name!r} came to {so} after all "
            f"{result.samples} images; raise rel_error, or give it more images (num_samples)",
            Task2VecWarning,
            stacklevel=4,  # the caller of fisher_embed, behind torch's decorator
        )


def _whole(name: str, value: int, least: int, most: int | None = None) -> int:
    """Return a plain int, whatever kind of integer it is, or raise now rather than after the work."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"fisher_embed: expected {name} as a whole number, got {value!r} ({type(value).__name__}).")
    if number < least or (most is not None and number > most):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"fisher_embed: expected {name} {limits}, got {number}.")
    return number
