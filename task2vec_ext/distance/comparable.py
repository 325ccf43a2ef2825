"""Which embeddings may be compared, and what keeps others from it, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..embedding import Embedding
    from .reference import Reference


def check_comparable(embeddings: Sequence[Embedding | Reference]) -> None:
    """Raise unless distances between the embeddings mean something.

    What must agree: the probe (by fingerprint), its preprocessing, the layers, and the settings, as
    `EmbedSettings.differences` compares them.

    Args:
        embeddings: Any number of them, references included; none and one are comparable.

    Raises:
        ValueError: If two of them differ; the message names both and lists every difference.

    Note:
        ``"cross_entropy"`` and ``"multilabel"`` may be mixed: four tasks of the demo embedded by both were 0.01–0.05
        from themselves (d_sym) and 0.28–0.49 from each other, while ``"regression"`` on the same one-hot labels was
        0.20–0.31 from both. All Fishers have one unit, but how large the noise of a regression is, or how many cells of
        an image are observations, sets scales that d_sym sees. Pseudo-labels answer another question than labels do.
    """
    for index, other in enumerate(embeddings):
        first = embeddings[0]
        layers = [] if first.layers == other.layers else [f"layers: {_describe_layers(first, other)}"]
        found = first.probe.differences(other.probe) + layers + first.settings.differences(other.settings)
        if found:
            raise ValueError(
                f"check_comparable: expected embeddings made in the same way, got {first.name!r} (number 0) and "
                f"{other.name!r} (number {index}) that differ in {'; '.join(found)}. Embed both tasks with the same "
                "probe and settings."
            )


def _describe_layers(a: Embedding | Reference, b: Embedding | Reference) -> str:
    """The first layer that differs, or the numbers where one list only goes on longer."""
    pairs = zip(a.layers, b.layers, strict=False)
    longer = f"{len(a.layers)} (K = {len(a):,}) against {len(b.layers)} (K = {len(b):,})"
    return next((f"{mine} against {theirs}" for mine, theirs in pairs if mine != theirs), longer)
