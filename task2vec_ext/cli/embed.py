"""`task2vec embed` and `task2vec info`: embeddings, and what they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from .._util.terminal import console, print_table
from ..words import AnyEstimator, Decoder, Dtype, LossName, Noise
from .options import (
    Device,
    ImageSize,
    NumSamples,
    ProbeName,
    Ray,
    Seed,
    SkipUnreadable,
    Specs,
    Weights,
    kept,
    on_error,
)

if TYPE_CHECKING:
    from ..data import ImageCache
    from ..library import Entry

_TABLE_ROWS = 40  # tasks that are listed when they are done; task2vec library ls lists any number


def embed(
    specs: Specs,
    output: Annotated[Path, Option("--output", "-o", help="The library's folder; made where there is none.")],
    probe: ProbeName = "resnet34",
    weights: Weights = None,
    pseudo_labels: Annotated[
        int | None, Option(min=2, help="Folders of unlabelled images: take this many k-means clusters for classes.")
    ] = None,
    loss: Annotated[
        LossName, Option(help="What the labels are: one class, several classes, numbers or masks.")
    ] = "cross_entropy",
    estimator: Annotated[
        AnyEstimator, Option(help="How the expectation over labels is taken; variational: the robust Fisher.")
    ] = "signed",
    beta: Annotated[float | None, Option(help="variational: weight of the KL term.")] = None,
    noise: Annotated[Noise | None, Option(help="variational: where noise is added; default: activations.")] = None,
    epochs: Annotated[int | None, Option(help="variational: passes over 10,000 drawn images; default: 4.")] = None,
    num_samples: NumSamples = None,
    image_size: ImageSize = None,
    dtype: Annotated[
        Dtype, Option(help="What the network computes in; tf32 (GPU) and bfloat16 are faster, less exact.")
    ] = "float32",
    device: Device = None,
    batch_size: Annotated[int, Option(min=1, help="Images at a time.")] = 32,
    num_workers: Annotated[
        int | None, Option(min=0, help="Processes that decode images; default: for a GPU its share of the cores.")
    ] = None,
    decoder: Annotated[
        Decoder, Option(help="draft: decode large JPEGs at a fraction of their size; faster, other numbers.")
    ] = "exact",
    image_cache: Annotated[
        str | None,
        Option(
            metavar="DIR|off",
            help="Folder that keeps decoded images for later runs, or off: decode in every pass; default: memory, then "
            "a temporary file.",
        ),
    ] = None,
    cache_memory: Annotated[float, Option(min=0, help="Most GiB of decoded images in memory.")] = 1,
    cache_disk: Annotated[float, Option(min=0, help="Most GiB in the folder or the temporary file.")] = 64,
    seed: Seed = 0,
    skip_unreadable: SkipUnreadable = False,
    retry_failed: Annotated[
        bool, Option("--retry-failed", help="Try the tasks again that failed in an earlier run.")
    ] = False,
    part: Annotated[
        str | None,
        Option(metavar="K/N", help="Embed part K = 0…N-1 of N parts: N processes with one folder embed all tasks."),
    ] = None,
    ray: Ray = None,
) -> None:
    """Embed tasks into a library, one vector each.

    A library is a folder. Tasks that are in it already are left as they are. The command can be killed at any time;
    the same command continues where it stopped. A task that fails is recorded and does not stop the others; the exit
    code is then 1.
    """
    from ..data import tasks_from
    from ..fisher import VariationalSettings
    from ..library import build_library
    from ..library.folder import Folder
    from ..losses import PseudoLabels
    from ..settings import EmbedSettings

    if pseudo_labels is not None and loss != "cross_entropy":
        raise ValueError(f"embed: expected either --pseudo-labels or --loss {loss}, got both.")
    options = {"beta": beta, "noise": noise, "epochs": epochs}
    variational: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if variational and estimator != "variational":
        given_as = " and ".join(f"--{name}" for name in variational)
        raise ValueError(
            f"embed: expected {given_as} with --estimator variational, got {estimator}; leave {given_as} out."
        )
    settings = EmbedSettings(
        loss if pseudo_labels is None else PseudoLabels(num_clusters=pseudo_labels),
        estimator,
        num_samples=num_samples,
        seed=seed,
        variational=VariationalSettings(**variational) if variational else None,
        dtype=dtype,
    )
    # Of pseudo-labels, folders hold nothing but images.
    tasks = tasks_from(*specs, target=None if pseudo_labels is None else settings.loss_object.target)
    earlier = Folder(output).stamps()
    with kept(f"what is embedded is kept in {output}: the same command continues"):
        library = build_library(
            tasks,
            output,
            probe,
            settings=settings,
            weights=weights,
            image_size=image_size,
            device=device,
            batch_size=batch_size,
            decoder=decoder,
            num_workers=num_workers,
            image_cache=_image_cache(image_cache, cache_memory, cache_disk),
            on_error=on_error(skip_unreadable),
            retry_failed=retry_failed,
            part=None if part is None else _part(part),
            ray=ray,
            progress=True,
        )
    names = set(tasks.names)
    entries = [entry for entry in library.entries() if entry.name in names]
    now = Folder(output).stamps()
    unchanged = {entry.name for entry in entries if entry.file in now and earlier.get(entry.file) == now[entry.file]}
    if len(entries) <= _TABLE_ROWS:
        print_entries(entries, unchanged)
    done, failed = (sum(entry.state == state for entry in entries) for state in ("done", "failed"))
    of_those = f", {len(unchanged)} of them kept from before" if unchanged else ""
    print(f"{done} of {len(tasks)} tasks are embedded in {output}{of_those}")
    if failed:
        print(f"{failed} failed; task2vec library ls {output} --failed shows why, --retry-failed tries them again")
        raise typer.Exit(1)


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"embed: expected --part K/N with K from 0 to N-1, such as 0/4 to 3/4; got {text}.")
    return int(match[1]), int(match[2])


def _image_cache(where: str | None, memory: float, disk: float) -> ImageCache:
    """Return what the options ask for; sizes in GiB."""
    from ..data import ImageCache

    if where == "off":
        return ImageCache(0, 0)
    return ImageCache(int(memory * 2**30), int(disk * 2**30), where)


def print_entries(entries: Iterable[Entry], kept: Collection[str] = ()) -> None:
    """Print what a library knows of its tasks, a line each; `kept`: names of those that a build did not touch."""
    rows = [
        (
            entry.name,
            "kept" if entry.name in kept else entry.state,
            "" if entry.images is None else f"{entry.images:,}",
            str(entry.num_skipped or "") if entry.state == "done" else "",
            "" if entry.num_outputs is None else str(entry.num_outputs),
            "" if entry.score is None else f"{entry.score:.1%}",
            "" if entry.norm is None else f"{entry.norm:.4g}",
        )
        for entry in entries
    ]
    columns = ("task", "state", "images", "unreadable", "classes", "head", "norm")
    print_table(console(), columns, rows)


def info(file: Annotated[Path, Argument(metavar="FILE", help="An embedding (.safetensors).")]) -> None:
    """Print what an embedding is and how it was made."""
    from ..distance import norm_with_error, relative_error
    from ..embedding import Embedding

    embedding = Embedding.load(file)
    print(embedding)
    rows = {
        "classes": ", ".join(embedding.classes) if embedding.classes else str(embedding.head.num_outputs),
        "probe": str(embedding.probe),
        "head layer": embedding.probe.head,
        "preprocess": str(embedding.probe.preprocess),
        **{key: str(value) for key, value in embedding.settings.to_json().items()},
        "prior_scale": str(embedding.prior_scale),
        **({"epoch_nll": str(embedding.epoch_nll)} if embedding.epoch_nll else {}),
        "task_digest": str(embedding.task_digest),
        **{f"metadata {key}": str(value) for key, value in embedding.metadata.items()},
        "version": embedding.version,
    }
    if embedding.group_means is not None:
        low, high = (float(end) for end in norm_with_error(embedding).interval())
        rows |= {"norm, 95 %": f"{low:.4g} to {high:.4g}", "relative error": f"{relative_error(embedding):.1%}"}
    for key, value in rows.items():
        print(f"{key:>20}: {value}")
    print(f"{'layers':>20}: {len(embedding.layers)}")
    for layer in embedding.layers:
        mean = float(embedding.layer(layer.name).mean())
        print(f"{'':>20}  {layer.name:<28} {layer.kind:<9} {layer.stop - layer.start:>5} filters  mean F {mean:.3e}")
