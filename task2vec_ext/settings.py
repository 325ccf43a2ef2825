"""What decides the numbers of an embedding, in one object: `EmbedSettings`.

Device, batch size and processes are not in it: they do not change the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ._util.numbers import whole
from .fisher.head import DEFAULT_FOLDS, HeadSettings
from .fisher.per_sample import ANY_ESTIMATORS
from .fisher.variational import VariationalSettings, check_layers
from .losses import Loss, as_loss, loss_of
from .probe.precision import DTYPES
from .words import AnyEstimator, Dtype, LossName

if TYPE_CHECKING:
    from .probe.layers import Layer
    from .probe.probe import Probe

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

_FISHER_ESTIMATORS = ("exact", "signed", "sampled")  # three ways to one quantity: they compare
_SAME_LOSS = {"multilabel": "cross_entropy"}  # losses whose embeddings compare
# What the losses of two embeddings must agree in; other options belong to each task's own classes.
_LOSS_OPTIONS = ("label_smoothing", "noise", "pool")


@dataclass(frozen=True)
class EmbedSettings:
    """Everything that decides an embedding's numbers, besides the task and the probe.

    Args:
        loss: What the labels are, and the model's distribution over them: ``"cross_entropy"`` (a class),
            ``"multilabel"`` (multi-hot tensors or lists of label indices), ``"regression"`` (numbers), ``"dense"`` (a
            mask), or an object of `task2vec_ext.losses`, for options and for unlabelled images:
            ``MultiLabel(label_smoothing=0.1)``, ``PseudoLabels(num_clusters=20)``.
        estimator: How the expectation over labels is computed. ``"signed"``: one backward pass, small variance.
            ``"exact"``: C passes, no variance. ``"sampled"``: the paper's, heavy-tailed. ``"empirical"``: the data's
            labels, which is not the Fisher. ``"variational"``: the paper's robust Fisher, fitted by SGD.
        num_samples: At most this many images, drawn at random, in proportion to the classes if there are any;
            default: all.
        rel_error: Take images in random order until the relative standard error ‖SE‖₂/‖F‖₂ is at most this, say 0.05.
            The head is fitted to all images. Default: take all.
        seed: Seed of every random choice: the draw, the estimator's noise, Adam. Same seed, same embedding.
        layers: Names of the layers to use, or prefixes of names, e.g. ``["layer3", "layer4"]``; default: all.
        include_batchnorm: Add one entry per BatchNorm channel, as the authors' Monte-Carlo embeddings have.
        head: How the head is fitted.
        variational: How the robust Fisher is fitted; None for other estimators than ``"variational"``.
        dtype: What the network computes in, forwards and backwards; heads and sums are float64 always. ``"float32"``
            (weights that are float64 or 16-bit: their own type); ``"tf32"``: products of 10-bit fractions, on GPUs
            alone; ``"bfloat16"``: autocast, 8 bits. Fewer bits are faster on a GPU. The caller's own autocast and
            precision settings do not count.

    Raises:
        ValueError: If a value is out of range, or two options contradict each other.
        TypeError: If a value is of the wrong type.
        NotImplementedError: If options are valid, but cannot be combined.
    """

    loss: Loss | LossName = "cross_entropy"
    estimator: AnyEstimator = "signed"
    num_samples: int | None = None
    rel_error: float | None = None
    seed: int = 0
    layers: Sequence[str] | None = None
    include_batchnorm: bool = False
    head: HeadSettings = field(default_factory=HeadSettings)
    variational: VariationalSettings | None = None
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        """Check all that can be checked without a probe; give every option one form."""
        put = object.__setattr__
        if self.estimator not in ANY_ESTIMATORS:
            names = ", ".join(ANY_ESTIMATORS)
            raise ValueError(f"EmbedSettings: expected estimator to be one of {names}; got {self.estimator!r}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"EmbedSettings: expected dtype to be one of {', '.join(DTYPES)}; got {self.dtype!r}.")
        put(self, "loss", as_loss(self.loss))
        put(self, "seed", whole("EmbedSettings", "seed", self.seed, 0, 2**63 - 1))
        if self.num_samples is not None:
            put(self, "num_samples", whole("EmbedSettings", "num_samples", self.num_samples, 1))
        if self.rel_error is not None and not 0 < self.rel_error < math.inf:
            raise ValueError(f"EmbedSettings: expected rel_error > 0, say 0.05; got {self.rel_error}.")
        if self.layers is not None:
            named = not isinstance(self.layers, str) and all(isinstance(name, str) for name in self.layers)
            if not named:
                raise TypeError(
                    f"EmbedSettings: expected layers as a list of names, got {self.layers!r}; pass for instance "
                    "['layer4']."
                )
            put(self, "layers", tuple(self.layers))
        self.head.check(self.loss_object)
        self._check_variational()

    def _check_variational(self) -> None:
        if self.estimator != "variational":
            if self.variational is not None:
                raise ValueError(
                    f"EmbedSettings: expected variational with estimator='variational' alone, got estimator "
                    f"{self.estimator!r}; leave it out, or change the estimator."
                )
            return
        if self.rel_error is not None:
            raise ValueError(
                "EmbedSettings: expected rel_error with a per-sample estimator, got 'variational'; set the epochs of "
                "VariationalSettings instead."
            )
        if self.loss_object.name not in ("cross_entropy", "pseudo_labels"):
            raise NotImplementedError(
                f"EmbedSettings: expected a loss of one class an image for 'variational', got "
                f"{self.loss_object.name!r}; use estimator='signed'."
            )
        object.__setattr__(self, "variational", self.variational or VariationalSettings())
        object.__setattr__(self, "head", replace(self.head, cross_fit=None))  # one head, fitted on with the noise

    @property
    def loss_object(self) -> Loss:
        """The loss as an object, also if it was given by name."""
        assert isinstance(self.loss, Loss)
        return self.loss

    def override(self, **options: Any) -> EmbedSettings:
        """Return these settings with other values for the options that are not None.

        Args:
            **options: Fields of this class.

        Returns:
            New settings, checked.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if given.get("estimator", "variational") != "variational":
            # Both belonged to the estimator before.
            given.setdefault("variational", None)
            if self.estimator == "variational":
                given.setdefault("head", replace(self.head, cross_fit=DEFAULT_FOLDS))
        return replace(self, **given) if given else self

    def check(self, probe: Probe) -> list[Layer]:
        """Return the layers that an embedding of this probe describes, or raise: no image has been read yet.

        Args:
            probe: As `load_probe` returns it.

        Returns:
            The layers, as slices of ``[0, K)``.

        Raises:
            ValueError: If the probe has no such layers, or the estimator cannot describe one of them.
            NotImplementedError: If two layers share one weight, or one is computed from others.
        """
        layers = probe.layers(self.layers, include_batchnorm=self.include_batchnorm)
        if self.variational is not None:
            check_layers(layers)
        return layers

    def to_json(self) -> dict[str, JSON]:
        """Return the settings as JSON values, which `from_json` reads."""
        record: dict[str, JSON] = {
            "loss": self.loss_object.options(),
            "estimator": self.estimator,
            "num_samples": self.num_samples,
            "rel_error": self.rel_error,
            "seed": self.seed,
            "layers": None if self.layers is None else list(self.layers),
            "include_batchnorm": self.include_batchnorm,
            "head": asdict(self.head),
            "variational": None if self.variational is None else asdict(self.variational),
            "dtype": self.dtype,
        }
        return json.loads(json.dumps(record))  # a loss may hold tuples

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> EmbedSettings:
        """Return the settings that `to_json` wrote; missing options have their defaults.

        Args:
            record: A dictionary.

        Raises:
            ValueError: If it has a key that this version does not know.
        """
        known = dict(record)
        if "loss" in known:
            known["loss"] = loss_of(known["loss"])
        if known.get("head") is not None:
            known["head"] = HeadSettings(**({"cross_fit": None} | known["head"]))  # version 0.2 had one head
        if known.get("variational") is not None:
            known["variational"] = VariationalSettings(**known["variational"])
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(f"EmbedSettings: cannot read this record ({error}); upgrade task2vec_ext.") from error

    def differences(self, other: EmbedSettings) -> list[str]:
        """Return why embeddings made with these settings and with others cannot be compared.

        ``exact``, ``signed`` and ``sampled`` estimate the same Fisher and can be compared; ``empirical`` and
        ``variational`` only with themselves. Losses must agree, and so must their options `label_smoothing`, `noise`
        and `pool`, but ``"cross_entropy"`` and ``"multilabel"`` can be compared. Seed, number of images and layers may
        differ (the layers that result may not).

        Args:
            other: The settings of the other embedding.

        Returns:
            One text for each difference, "what: this against that"; none if the two can be compared.
        """
        mine, theirs = self.to_json(), other.to_json()
        found = []
        for option in ("head", "include_batchnorm", "variational", "dtype"):
            found += value_differences(option, mine[option], theirs[option])
        a, b = self.loss_object.options(), other.loss_object.options()
        if _SAME_LOSS.get(a["name"], a["name"]) != _SAME_LOSS.get(b["name"], b["name"]):
            found.append(f"loss: {a['name']} against {b['name']}")
        for option in _LOSS_OPTIONS:
            found += value_differences(f"loss {option}", a.get(option), b.get(option))
        if self._quantity != other._quantity:
            found.append(f"estimator: {self.estimator} against {other.estimator}")
        return found

    def changes(self, other: EmbedSettings) -> list[str]:
        """Return every option in which these settings differ from others, in the words of `differences`."""
        if self == other:
            return []
        mine, theirs = self.to_json(), other.to_json()
        return [text for option in mine for text in value_differences(option, mine[option], theirs[option])]

    @property
    def _quantity(self) -> str:
        return "fisher" if self.estimator in _FISHER_ESTIMATORS else self.estimator


def settings_of_format_2(recipe: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of files and libraries of version 0.1 as `EmbedSettings.to_json` writes them.

    Args:
        recipe: Options by name; those that are no settings are left out.
        head: ``method``, ``l2`` and ``class_balanced``.
    """
    names = ("loss", "estimator", "num_samples", "rel_error", "seed", "layers", "include_batchnorm")
    variational = recipe.get("variational")
    if variational is not None:
        variational = {"objective" if key == "recipe" else key: value for key, value in variational.items()}
    return {**{key: recipe[key] for key in names if key in recipe}, "head": head, "variational": variational}


def value_differences(name: str, a: JSON, b: JSON) -> list[str]:
    """Return where two JSON values differ, key by key where both are objects.

    Args:
        name: What they are.
        a: One.
        b: The other.

    Returns:
        Texts such as ``"head l2: 0.01 against 0.1"``; none where the values agree.
    """
    if a == b:
        return []
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b})
        return [text for key in keys for text in value_differences(f"{name} {key}", a.get(key), b.get(key))]
    return [f"{name}: {a} against {b}"]
