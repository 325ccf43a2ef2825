"""What does an embedding cost from call to return, in plain steps over the same images, and where does the time go?

    python benchmarks/end_to_end.py [--arch resnet34] [--images 512] [--batch-size 32]

`fisher_embed` of preprocessed images in memory, everything included, against what no method can do without: one
forward pass over them (to fit the head) and one plain forward and backward. The error to autograd, one image at a time,
is a figure in TF32, whose rounding opens other ReLUs (`_step.LIMIT`); in float32 a wrong embedding is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from _measure import check, interleave, parser, print_table, ratio, summary
from _record import write_record
from _stages import timed_stages
from _step import LIMIT, Setup, Step, reference_fisher, relative_error
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from task2vec_ext import Embedding, Probe, as_task, fisher_embed
from task2vec_ext.data import Batch
from task2vec_ext.embed import Work
from task2vec_ext.fisher import HeadSettings, fit_cross_fit_head
from task2vec_ext.losses import CrossEntropy
from task2vec_ext.settings import EmbedSettings

CLASSES = 10


def main() -> None:
    """Check, time, print, write."""
    arguments = parser(__doc__, repeats=3)
    arguments.add_argument("--arch", default="resnet34")
    arguments.add_argument("--images", type=int, default=512)
    arguments.add_argument("--batch-size", type=int, help="default: 32 on the CPU, 256 on a GPU")
    options = arguments.parse_args()
    batch_size = options.batch_size or (256 if options.device.startswith("cuda") else 32)
    # On a GPU as a user has it by default: cuDNN may use TF32.
    precision = "tf32" if options.device.startswith("cuda") else "fp32"
    setup = Setup(options.arch, batch_size, options.size, options.device, precision)
    for result in measure(setup, options.images, options.repeats):
        path = write_record("end_to_end", result)
    report(result)
    print(path)


def measure(setup: Setup, count: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield the error, then also the time of both and their ratio, then also the stages of ours."""
    step = replace(setup, channels_last=True).build()
    images, labels = blobs(count, setup.size)
    task = TensorDataset(images, labels)

    def embed(task: TensorDataset = task) -> Embedding:
        return fisher_embed(
            task,
            step.probe,
            dtype="tf32" if setup.precision == "tf32" else "float32",
            batch_size=setup.batch_size,
            device=setup.device,
            progress=False,
        )

    few = 2 * CLASSES
    error = error_of(embed(TensorDataset(*task[:few])), step.probe, *task[:few])
    if setup.precision == "fp32":
        check("fisher_embed", error, LIMIT)
    result: dict[str, Any] = {
        **{name: getattr(setup, name) for name in ("arch", "batch_size", "size", "device", "precision")},
        "images": count,
        "relative_error": error,
    }
    yield result
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: plain_steps(step, images, labels, setup.batch_size),
        "fisher_embed": embed,
    }
    replace(setup, batch_size=2).build().plain()  # what a first call loads
    seconds = interleave(ways, repeats, setup.device)
    result |= {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "time_ratio": ratio(seconds["fisher_embed"], seconds["plain"]),
    }
    yield result
    work = Work(setup.device, setup.batch_size, progress=False)
    yield result | {"stages": asdict(timed_stages(as_task(task), step.probe, EmbedSettings(), work))}


def blobs(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return noisy images of one colour a class ``[N, 3, size, size]``, preprocessed, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    colours = torch.randn(CLASSES, 3, 1, 1, generator=generator)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images.add_(colours[labels]), labels


def plain_steps(step: Step, images: Tensor, labels: Tensor, batch_size: int) -> None:
    """One forward pass over the images, then one plain forward and backward, channels-last: the faster layout."""
    device = step.batch.images.device
    in_layout = images.to(memory_format=torch.channels_last)
    batches = list(zip(in_layout.split(batch_size), labels.split(batch_size), strict=True))
    with torch.no_grad():
        for x, _ in batches:
            step.probe.module(x.to(device))
    for x, y in batches:
        step.probe.module.zero_grad(set_to_none=True)
        F.cross_entropy(step.probe.module(x.to(device)), y.to(device), reduction="sum").backward()


def error_of(embedding: Embedding, probe: Probe, images: Tensor, labels: Tensor) -> float:
    """Return an embedding's relative error to autograd, one image at a time, with heads fitted alike."""
    device = next(probe.module.parameters()).device
    batch = Batch(torch.arange(len(images)), images.to(device), labels.to(device))
    with torch.no_grad():
        features = probe.features(batch.images).float()
    head = fit_cross_fit_head(features, batch.labels, CLASSES, batch.index, CrossEntropy(), HeadSettings(), 0)
    return relative_error(embedding.fisher, reference_fisher(probe, probe.layers(), head, batch).mean(0))


def report(result: dict[str, Any]) -> None:
    """Print the figures."""
    plain = result["seconds"]["plain"]["median"]
    ours = result["seconds"]["fisher_embed"]["median"]
    parts = result["stages"]
    print_table(
        f"{result['images']} images, {result['arch']}, {result['size']} px, batch {result['batch_size']}, "
        f"{result['device']}, error {result['relative_error']:.1e}",
        ["", "seconds", "÷ plain"],
        [
            ("plain: forward, then forward and backward", plain, 1.0),
            ("fisher_embed", ours, result["time_ratio"]["median"]),
            *[(f"  {name}", parts[name], parts[name] / plain) for name in ("features", "head", "fisher")],
            ("  of these waiting for images", parts["waiting"], parts["waiting"] / plain),
        ],
    )


if __name__ == "__main__":
    main()
