"""How often do 95 % intervals of the norm and of d_sym hold the full task's value?

    python benchmarks/interval_coverage.py --data DIR [--draws 200] [--refits 200]

Every image's Fisher is computed once, under the head of the full task. A draw takes N images at random with
replacement: independent images of a population whose mean is known. (Without replacement the error would be smaller
than the interval says.) The rows "refitted" draw N images without replacement and fit the head to them alone; the truth
is still the full task under its own head, and the interval does not account for the head.

``same`` is the distance of two draws of one task, whose true value is 0.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import _image_fisher
import _tasks
import torch
from _intervals import d_sym, grouped, norm
from _record import write_record
from rich.progress import track
from torch import Tensor

from task2vec_ext.jackknife import Groups
from task2vec_ext.kernels.pairwise import sym_distances

TASKS = (
    "clothing10",
    "cub_passeriformes_families",
    "mnist",
    "flowers12",
    "taxa_magnoliopsida_orders",
    "fashion_gender",
)


def main() -> None:
    """Draw, count, write."""
    parser = _tasks.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="two or more names in tasks.json")
    parser.add_argument("--samples", type=int, nargs="+", default=[50, 100, 200, 500, 1000])
    parser.add_argument("--draws", type=int, default=200, help="of each task or pair of tasks, head held fixed")
    parser.add_argument("--refits", type=int, default=200, help="draws with refitted heads, over all tasks; 0: none")
    parser.add_argument("--refit-samples", type=int, default=200)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "task2vec-rows", help="folder that keeps the rows"
    )
    options = parser.parse_args()

    net, l2 = _tasks.probe(options), None
    tasks = _tasks.real_tasks(options.data, only=options.tasks)
    rows = [
        _image_fisher.image_fisher(task, net, estimator="signed", l2=l2, cache=options.cache).fisher for task in tasks
    ]
    truths = [one.double().mean(0) for one in rows]
    random = torch.Generator().manual_seed(0)

    def fixed(number: int, samples: int) -> Groups:
        return grouped(rows[number][torch.randint(len(rows[number]), (samples,), generator=random)])

    found: list[dict] = []

    def add(head: str, draws: int, draw: Callable[[int, int], Groups], samples: int) -> None:
        pairs = [(i, j) for i, j in itertools.pairwise([*range(len(tasks)), 0]) for _ in range(draws)]
        found.append({"head": head, **_count(track(pairs, f"{head}, N = {samples}"), truths, draw, samples)})
        result = {"probe": options.probe, "image_size": options.image_size, "estimator": "signed", "confidence": 0.95}
        described = [{"name": task.name, "images": len(task)} for task in tasks]
        print(found[-1], write_record("interval_coverage", {**result, "tasks": described, "rows": found}), sep="\n")

    for samples in options.samples:
        add("fixed", options.draws, fixed, samples)
    if options.refits:
        images = [_image_fisher.read(task, net) for task in tasks]

        def refitted(number: int, samples: int) -> Groups:
            return grouped(_image_fisher.refitted(net, images[number], samples, l2, random))

        add("refitted", -(-options.refits // len(tasks)), refitted, options.refit_samples)


def _count(
    pairs: Iterator[tuple[int, int]], truths: list[Tensor], draw: Callable[[int, int], Groups], samples: int
) -> dict:
    """Return how often intervals hold the truth, and the bias of the values before and after its correction."""
    kept: dict[str, list[list[float]]] = {"norm": [], "d_sym": [], "same": []}
    relative = []
    for i, j in pairs:
        a, b, twin = draw(i, samples), draw(j, samples), draw(i, samples)
        judged = {
            "norm": (norm(a), truths[i].sum()),
            "d_sym": (d_sym(a, b), sym_distances(truths[i][None], truths[j][None])[0, 0]),
            "same": (d_sym(a, twin), torch.tensor(0.0, dtype=torch.float64)),
        }
        for what, (one, truth) in judged.items():
            low, high = one.interval()
            numbers = (low <= truth <= high, one.value - truth, one.corrected - truth, one.standard_error)
            kept[what].append([float(number) for number in numbers])
        relative.append([a.relative_error(), float((a.mean - truths[i]).norm() / truths[i].norm())])
    estimated, actual = torch.tensor(relative).square().mean(0).sqrt().tolist()
    summary: dict = {"samples": samples, "draws": len(relative), "relative_error": [estimated, actual]}
    for what, numbers in kept.items():
        covered, value, corrected, error = torch.tensor(numbers, dtype=torch.float64).unbind(1)
        summary[what] = {
            "coverage": float(covered.mean()),
            "bias": float(value.mean()),
            "bias_corrected": float(corrected.mean()),
            "deviation": float(corrected.std()),
            "standard_error": float(error.mean()),
        }
    return summary


if __name__ == "__main__":
    main()
