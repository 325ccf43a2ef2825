"""What all embeddings of a library are made with: probe, preprocessing and every option that decides the numbers."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..distance.comparable import setting_differences
from ..embed.fisher_embed import fisher_embed
from ..fisher.head import head_l2
from ..fisher.variational import variational_options
from ..losses import as_loss
from .index import Index

if TYPE_CHECKING:
    from pathlib import Path

    from ..embedding import JSON
    from ..probe.probe import Probe

OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(fisher_embed).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
OF_PROBE = ("weights", "head", "preprocess", "image_size")
# What may differ between the tasks of a library: where and how the work is done, and what to do about broken images.
OF_WORK = ("device", "batch_size", "num_workers", "on_error", "name", "progress", "process_group", "feature_cache")
_OF_VARIATIONAL = ("recipe", "beta", "noise", "epochs", "epoch_samples")


def settings_of(net: Probe, options: dict[str, Any]) -> dict[str, JSON]:
    """What all embeddings of a library are made with: the probe and every option that decides the numbers."""
    chosen = {**OPTIONS, **options}
    variational = variational_options(chosen["estimator"], **{name: chosen[name] for name in _OF_VARIATIONAL})
    layers = net.layers(chosen["layers"], include_batchnorm=chosen["include_batchnorm"])
    loss = as_loss(chosen["loss"])
    chosen["loss"] = loss.options()
    chosen["head_l2"] = head_l2(chosen["head_method"], chosen["head_l2"], loss, chosen["class_balanced"])
    chosen["layers"] = None if chosen["layers"] is None else list(chosen["layers"])
    plain = {name: chosen[name] for name in OPTIONS if name not in (*OF_PROBE, *OF_WORK, *_OF_VARIATIONAL)}
    return {
        "probe": {"name": net.name, "weights": net.weights, "fingerprint": net.fingerprint, "head": net.head},
        "preprocess": None if net.preprocess is None else net.preprocess.to_dict(),
        "filters": layers[-1].stop,
        **plain,
        "variational": None if variational is None else asdict(variational),
    }


def create_or_compare(root: Path, settings: dict[str, JSON]) -> None:
    """Make the index, or refuse a library whose embeddings would not be like those to come."""
    index = Index(root / "index.sqlite")
    if index.settings() is None:
        index.create(settings)
    compare(root, settings)


def compare(root: Path, settings: dict[str, JSON]) -> None:
    """Refuse a library whose embeddings are not like those that these settings make."""
    found = Index(root / "index.sqlite").settings()
    if found is None:
        raise ValueError(f"build_library: expected the library of the first rank at {root}, found none; use one disk.")
    # An option that is younger than the library had its default.
    found = {**{name: value for name, value in OPTIONS.items() if name in settings}, **found}
    if _fingerprint(found) == _fingerprint(settings):  # whatever its weights are called
        found["probe"] = settings["probe"]
    keys = dict.fromkeys((*found, *settings))
    differences = [text for key in keys for text in setting_differences(key, found.get(key), settings.get(key))]
    if differences:
        raise ValueError(
            f"build_library: expected the settings that {root} was built with, got others (there against here): "
            f"{'; '.join(differences)}. Use the same, or another folder."
        )


def _fingerprint(settings: dict[str, JSON]) -> JSON:
    probe = settings["probe"]
    assert isinstance(probe, dict)
    return probe["fingerprint"]
