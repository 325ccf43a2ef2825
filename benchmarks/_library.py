"""Distances between the tasks of a library that look at the whole library, and how well they find the own domain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch
from _tasks import domain, num_samples, part
from torch import Tensor

from task2vec_ext import Embedding, Probe, Task, distance_matrix
from task2vec_ext.data.folder import Files
from task2vec_ext.embed import FeatureCache, Work, draw_images, embed_task
from task2vec_ext.embed.feature_cache import keys
from task2vec_ext.settings import EmbedSettings

FLOOR = 1e-3
"""Added to F of unit mean before the logarithm: dead filters have none."""


@dataclass(frozen=True)
class Embedded:
    """T tasks and what distances are computed from.

    Args:
        tasks: The tasks.
        embeddings: Of each.
        features: The mean feature of the same images, ``[T, D]`` float64.
    """

    tasks: list[Task]
    embeddings: list[Embedding]
    features: Tensor

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return [task.name for task in self.tasks]

    @property
    def fisher(self) -> Tensor:
        """F of unit mean, ``[T, K]`` float64."""
        return unit_mean(torch.stack([one.fisher for one in self.embeddings]))

    def subset(self, names: list[str]) -> Embedded:
        """Return the tasks of these names, in the order of the names."""
        rows = [self.names.index(name) for name in names]
        return Embedded([self.tasks[i] for i in rows], [self.embeddings[i] for i in rows], self.features[rows])


def halves(tasks: list[Task]) -> tuple[list[Task], list[Task]]:
    """Return the tasks to choose on and those to report.

    In every domain the tasks are ordered by a hash of their names and taken in turn: both halves have tasks of the
    large domains, and no result decides which.
    """
    domains = list(dict.fromkeys(map(domain, tasks)))
    order = sorted(tasks, key=lambda t: (domains.index(domain(t)), hashlib.sha256(t.name.encode()).hexdigest()))
    return order[::2], order[1::2]


def embed(tasks: list[Task], probe: Probe, settings: EmbedSettings, samples: int, keep: Path) -> Embedded:
    """Return the tasks, each embedded from the training half of its images.

    Args:
        tasks: Of image files.
        probe: To embed with.
        settings: But for the number of images.
        samples: Images of a task at most, or two a class.
        keep: Folder that keeps embeddings and mean features, so that a second run resumes.
    """
    keep.mkdir(parents=True, exist_ok=True)
    cache, embeddings, features = FeatureCache(), [], []
    for task in tasks:
        mean = kept(task, keep)
        file = mean.with_suffix(".safetensors")
        if not mean.exists():
            images = part(task).train
            own = settings.override(num_samples=num_samples(images, samples))
            embed_task(images, probe, own, Work(progress=False, feature_cache=cache)).save(file)
            rows = cache.get(keys(images, probe, draw_images(images, own)))[1]
            mean.write_text(json.dumps(rows.double().mean(0).tolist()))
            print(f"{task.name}: {len(rows)} images", flush=True)
        embeddings.append(Embedding.load(file))
        features.append(json.loads(mean.read_text()))
    return Embedded(tasks, embeddings, torch.tensor(features, dtype=torch.float64))


def kept(task: Task, keep: Path) -> Path:
    """Return the file of a task's mean feature, which is written when its embedding is there."""
    return keep / f"{quote(task.name, safe='')}.json"


def unit_mean(fisher: Tensor) -> Tensor:
    """Return every row over its mean."""
    return fisher / fisher.mean(1, keepdim=True)


def cosine(rows: Tensor) -> Tensor:
    """Return 1 − cosine of all pairs of rows, ``[T, T]``."""
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return 1 - unit @ unit.T


def centred(rows: Tensor) -> Tensor:
    """Return every row minus the library's mean row."""
    return rows - rows.mean(0)


def twice_centred(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return every row minus the library's mean row, then minus its own mean; weighted, with weights ``[K]``.

    The cosine of two such rows is the weighted Pearson correlation of their differences from the library.
    """
    weights = torch.ones(rows.shape[1], dtype=rows.dtype) if weights is None else weights
    rows = centred(rows)
    return (rows - (rows @ weights / weights.sum())[:, None]) * weights.sqrt()


def _shrunk(tasks: Embedded, share: float) -> Tensor:
    """Return log F of unit mean, moved by this share towards its layer's mean."""
    fisher = tasks.fisher
    for layer in tasks.embeddings[0].layers:
        own = fisher[:, layer.start : layer.stop]
        own.copy_((1 - share) * own + share * own.mean(1, keepdim=True))
    return (fisher + FLOOR).log()


def _noise(tasks: Embedded) -> Tensor:
    """Return the variance of every filter's log F from sampling images, mean over the tasks, ``[K]``."""
    found = []
    for one in tasks.embeddings:
        groups = one.groups
        share = (groups.sizes / groups.sizes.sum())[:, None]
        variance = ((groups.means.double() - groups.mean).square() * share / (1 - share)).mean(0)
        found.append(variance / (groups.mean + FLOOR * groups.mean.mean()).square())
    return torch.stack(found).mean(0)


def _whitened(rows: Tensor, ridge: float) -> Tensor:
    """Return centred rows with their covariance over the library divided out, plus a ridge in units of its mean."""
    rows = centred(rows)
    u, s, _ = torch.linalg.svd(rows, full_matrices=False)
    variance = s.square() / len(rows)
    return u * s * (variance + ridge * variance.mean()).rsqrt()


def _layers_alike(tasks: Embedded) -> Tensor:
    """Return weights with which every layer has the same sum, ``[K]``."""
    return torch.cat(
        [torch.full((n.stop - n.start,), 1 / (n.stop - n.start)) for n in tasks.embeddings[0].layers]
    ).double()


def _log(tasks: Embedded, floor: float = FLOOR) -> Tensor:
    return (tasks.fisher + floor).log()


BASELINES: dict[str, Callable[[Embedded], Tensor]] = {
    "sym": lambda t: distance_matrix(t.embeddings, "sym"),
    "sym_scaled": lambda t: distance_matrix(t.embeddings, "sym_scaled"),
    "mean feature": lambda t: cosine(t.features),
    "mean feature, centred": lambda t: cosine(centred(t.features)),
}
"""Distances to beat."""

PROPOSALS: dict[str, Callable[[Embedded], Tensor]] = {
    "log F, not centred": lambda t: cosine(_log(t) - _log(t).mean(1, keepdim=True)),
    **{
        f"centred, floor {floor:g}": lambda t, f=floor: cosine(centred(_log(t, f)))
        for floor in (1e-4, 1e-3, 1e-2, 1e-1)
    },
    **{
        f"correlation, floor {floor:g}": lambda t, f=floor: cosine(twice_centred(_log(t, f)))
        for floor in (1e-4, 1e-3, 1e-2, 1e-1)
    },
    **{
        f"correlation, shrunk {share:g} to the layer": lambda t, s=share: cosine(twice_centred(_shrunk(t, s)))
        for share in (0.1, 0.3, 0.5)
    },
    **{
        f"correlation, weights noise^-{power:g}": lambda t, p=power: cosine(
            twice_centred(_log(t), _noise(t).clamp(min=1e-3) ** -p)
        )
        for power in (0.5, 1.0)
    },
    "correlation, layers weigh alike": lambda t: cosine(twice_centred(_log(t), _layers_alike(t))),
    **{f"whitened, ridge {ridge:g}": lambda t, r=ridge: cosine(_whitened(_log(t), r)) for ridge in (0.1, 1.0)},
    "ranks, centred": lambda t: cosine(centred(t.fisher.argsort(1).argsort(1).double())),
    "log F, Euclidean": lambda t: torch.cdist(*[_log(t) - _log(t).mean(1, keepdim=True)] * 2),
    **{
        f"{share:g}·correlation + {1 - share:g}·mean feature": lambda t, s=share: (
            s * cosine(twice_centred(_log(t))) + (1 - s) * cosine(centred(t.features))
        )
        for share in (0.3, 0.5, 0.7)
    },
}
"""What was tried: all but "not centred" and "Euclidean" look at the library."""


@dataclass(frozen=True)
class Found:
    """How well a distance finds a task's own domain, of every task that has another one of it (NaN of the others).

    Args:
        own: Whether the nearest task is of the own domain, ``[T]``.
        precision: Average precision of the whole order, ``[T]``.
    """

    own: Tensor
    precision: Tensor


def retrieval(distances: Tensor, tasks: list[Task], *, apart: bool = False) -> Found:
    """Return how well each task, as a query, finds the others of its domain.

    Left out of a query's candidates are tasks of other domains that share images with it: they are neither right nor
    wrong. With `apart`, all that share images are.

    Args:
        distances: ``[T, T]``, smaller is nearer.
        tasks: Their tasks.
        apart: No candidate has an image of the query.
    """
    files = [set(task.source.names) for task in tasks if isinstance(task.source, Files)]
    own, precision = torch.full((len(tasks),), torch.nan), torch.full((len(tasks),), torch.nan)
    for i, query in enumerate(tasks):
        right = torch.tensor([domain(task) == domain(query) for task in tasks])
        shares = torch.tensor([not files[i].isdisjoint(other) for other in files])
        allowed = ~(shares & (~right | apart))
        allowed[i] = False
        hits = right[
            distances[i].masked_fill(~allowed, torch.inf).sort(stable=True).indices[: int(allowed.sum())]
        ].double()
        if hits.any():
            own[i] = hits[0]
            precision[i] = (hits * hits.cumsum(0) / torch.arange(1, len(hits) + 1)).sum() / hits.sum()
    return Found(own, precision)
