"""How far are embeddings in TF32 and bfloat16 from those in float32, on real tasks, and does it change distances?

    python benchmarks/precision.py --data DIR [--tasks 12] [--num-samples 60]

On the CPU: bfloat16 is `fisher_embed(dtype="bfloat16")`; TF32 is emulated, the operands of every convolution, matrix
product and of the operator rounded to 10 bits, forwards and backwards. Not measured on a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from statistics import median
from typing import Any

import _tasks
import torch
from _record import write_record
from rich.progress import track
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from task2vec_ext import Embedding, cross_distances, distance_matrix, fisher_embed

PRODUCTS = {  # the arguments that are rounded
    "aten::convolution": (0, 1),
    "aten::convolution_backward": (0, 1, 2),
    "aten::mm": (0, 1),
    "aten::addmm": (1, 2),
    "task2vec_ext::filter_grad_sq": (0, 1),
}


class EmulatedTF32(TorchDispatchMode):
    """Rounds the float32 operands of products to TF32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call the function, with rounded operands if it is a product."""
        rounded = PRODUCTS.get(func.name(), ())
        args = tuple(to_tf32(value) if place in rounded else value for place, value in enumerate(args))
        return func(*args, **(kwargs or {}))


def to_tf32(value: Tensor) -> Tensor:
    """Return float32 numbers rounded to a fraction of 10 bits, half away from zero as `cvt.rna` does; others as is."""
    if value.dtype != torch.float32:
        return value
    bits = value.clone().view(torch.int32)
    return bits.add_(1 << 12).bitwise_and_(-(1 << 13)).view(torch.float32)


def main() -> None:
    """Embed each task in each precision, compare, write."""
    parser = _tasks.parser(__doc__)
    parser.add_argument("--tasks", type=int, default=12, help="real tasks, of as many domains as there are")
    parser.add_argument("--num-samples", type=int, default=60, help="images of each task at most")
    parser.set_defaults(image_size=96)
    options = parser.parse_args()

    per_domain = [_tasks.real_tasks(options.data, count) for count in range(1, options.tasks + 1)]
    tasks = next(found for found in per_domain if len(found) >= options.tasks)[: options.tasks]
    net = _tasks.probe(options)
    ways: dict[str, tuple[Any, str]] = {
        "float32": (nullcontext(), "float32"),
        "tf32": (EmulatedTF32(), "float32"),
        "bfloat16": (nullcontext(), "bfloat16"),
    }
    found: dict[str, list[Embedding]] = {way: [] for way in ways}
    result: dict[str, Any] = {name: getattr(options, name) for name in ("probe", "image_size", "num_samples")}
    for task in track(tasks, "embedding"):
        for way, (context, dtype) in ways.items():
            with context:
                embedding = fisher_embed(task, net, num_samples=options.num_samples, dtype=dtype, progress=False)
            found[way].append(embedding)
        if len(found["float32"]) > 1:
            path = write_record("precision", result | compare(found))
    for way, figures in compare(found)["ways"].items():
        print(f"{way:>9}: {figures}")
    print(path)


def compare(found: dict[str, list[Embedding]]) -> dict[str, Any]:
    """Return how far each way's embeddings are from float32's, beside how far tasks are from each other."""
    exact = found["float32"]
    between = _pairs(distance_matrix(exact))
    result: dict[str, Any] = {
        "tasks": [embedding.name for embedding in exact],
        "images": sum(embedding.num_samples for embedding in exact),
        "d_sym_between_tasks": _spread(between),
        "ways": {},
    }
    for way in ("tf32", "bfloat16"):
        # Compared by values alone: a check of settings would refuse another dtype.
        others = [_as(exact[0], embedding) for embedding in found[way]]
        errors = [float((a.fisher - b.fisher).norm() / a.fisher.norm()) for a, b in zip(exact, others, strict=True)]
        own = [float(cross_distances([a], [b])[0, 0]) for a, b in zip(exact, others, strict=True)]
        within = _pairs(distance_matrix(others))
        nearest = [m.fill_diagonal_(torch.inf).argmin(1) for m in (distance_matrix(exact), distance_matrix(others))]
        result["ways"][way] = {
            "relative_error": _spread(errors),
            "d_sym_to_float32": _spread(own),
            "change_of_d_sym_between_tasks": _spread([abs(a - b) for a, b in zip(between, within, strict=True)]),
            "same_nearest": float((nearest[0] == nearest[1]).double().mean()),
        }
    return result


def _as(like: Embedding, embedding: Embedding) -> Embedding:
    """Return the embedding with the settings of another."""
    return replace(embedding, settings=like.settings)


def _pairs(matrix: Tensor) -> list[float]:
    rows, columns = torch.triu_indices(*matrix.shape, offset=1)
    return matrix[rows, columns].tolist()


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
