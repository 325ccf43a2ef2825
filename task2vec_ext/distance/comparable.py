"""Which embeddings may be compared, and what keeps others from it, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..embedding import JSON, Embedding, ProbeInfo

_SAME_LOSS = {"multilabel": "cross_entropy"}  # losses whose embeddings compare
# What two embeddings' losses must agree in; the rest belongs to each task's own classes or says how to read its labels.
_LOSS_SETTINGS = ("label_smoothing", "noise", "pool")
_FISHER_ESTIMATORS = ("exact", "signed", "sampled")  # three ways to one quantity: they compare


def check_comparable(embeddings: Sequence[Embedding]) -> None:
    """Raise unless distances between the embeddings mean something.

    What must agree: the probe (by fingerprint), the layers, the preprocessing, how the head was fitted
    (method, L2, class balance), whether BatchNorm is included, and the estimated quantity. ``exact``,
    ``signed`` and ``sampled`` estimate the same Fisher and may be mixed; ``empirical`` and ``variational``
    stand alone. Seed, number of samples and package version may differ.

    So must the loss and what shapes its fit, but for ``"cross_entropy"`` and ``"multilabel"``, which may be mixed: four
    tasks of the demo embedded by both were 0.01–0.05 from themselves (d_sym) and 0.28–0.49 from each other, while
    ``"regression"`` on the same one-hot labels was 0.20–0.31 from both. All Fishers have one unit, but how large a
    regression's noise is, or how many cells of an image are observations, sets scales that d_sym sees. Pseudo-labels
    answer no question that labels do.

    Args:
        embeddings: Any number of them; none and one are comparable.

    Raises:
        ValueError: If two of them differ; the message names both and lists every difference.
    """
    for index, other in enumerate(embeddings):
        differences = _differences(embeddings[0], other)
        if differences:
            raise ValueError(
                "check_comparable: expected embeddings made in the same way, got "
                f"{embeddings[0].name!r} (number 0) and {other.name!r} (number {index}) that differ in "
                f"{'; '.join(differences)}. Embed both tasks with the same probe and settings."
            )


def _differences(a: Embedding, b: Embedding) -> list[str]:
    """What keeps two embeddings from being compared, in words; empty where nothing does."""
    found = []
    if a.probe.fingerprint != b.probe.fingerprint:
        found.append(f"probe: {_describe_probe(a.probe)} against {_describe_probe(b.probe)}")
    if a.layers != b.layers:
        found.append(f"layers: {_describe_layers(a, b)}")
    for setting in ("method", "l2", "class_balanced"):
        found += setting_differences(f"head {setting}", getattr(a.head, setting), getattr(b.head, setting))
    for setting in ("preprocess", "include_batchnorm", "variational"):
        found += setting_differences(setting, a.recipe.get(setting), b.recipe.get(setting))
    mine, theirs = _loss(a), _loss(b)
    if len({_SAME_LOSS.get(str(loss["name"]), loss["name"]) for loss in (mine, theirs)}) > 1:
        found.append(f"loss: {mine['name']} against {theirs['name']}")
    for setting in _LOSS_SETTINGS:
        found += setting_differences(f"loss {setting}", mine.get(setting), theirs.get(setting))
    if _quantity(a) != _quantity(b):
        found.append(f"estimator: {a.recipe.get('estimator')} against {b.recipe.get('estimator')}")
    return found


def _quantity(embedding: Embedding) -> JSON:
    """What the estimator estimates: "fisher", or its own name where that is something else."""
    estimator = embedding.recipe.get("estimator")
    return "fisher" if estimator in _FISHER_ESTIMATORS else estimator


def _loss(embedding: Embedding) -> dict[str, JSON]:
    """Which loss, with the options that are not the default; files of format 1 know one loss."""
    loss = embedding.recipe.get("loss")
    return loss if isinstance(loss, dict) else {"name": "cross_entropy"}


def setting_differences(name: str, a: JSON, b: JSON) -> list[str]:
    """Say where two settings differ, key by key where both are objects.

    Args:
        name: Of the setting.
        a: One.
        b: The other.

    Returns:
        Words, none where they agree.
    """
    if a == b:
        return []
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b})
        return [text for key in keys for text in setting_differences(f"{name} {key}", a.get(key), b.get(key))]
    return [f"{name}: {a} against {b}"]


def _describe_probe(probe: ProbeInfo) -> str:
    return f"{probe.name} {probe.weights} ({probe.fingerprint[:12]})"


def _describe_layers(a: Embedding, b: Embedding) -> str:
    """The first layer that differs, or the numbers where one list only goes on longer."""
    pairs = zip(a.layers, b.layers, strict=False)
    longer = f"{len(a.layers)} (K = {len(a):,}) against {len(b.layers)} (K = {len(b):,})"
    return next((f"{mine} against {theirs}" for mine, theirs in pairs if mine != theirs), longer)
