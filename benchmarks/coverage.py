"""How often do 95 % intervals of the norm and of d_sym hold the full task's value?

    python -m benchmarks.coverage --data DIR [--draws 200] [--refits 200]

Every image's Fisher is computed once, under the head of the full task. A draw takes N of them at random with
replacement: independent images of a population whose mean is known, the full task (a draw without replacement would
have less error than the interval is about). Second figure, "refitted": N images drawn without
replacement, the head fitted to them alone and the Fisher taken anew; the truth stays that of the full task under its
own head, and the interval knows nothing of heads.

``same`` is the distance of two draws of one task: truth 0.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from benchmarks import _real, _rows
from benchmarks._record import write_result
from task2vec_ext.fisher.head import DEFAULT_L2
from task2vec_ext.jackknife import Estimate, Groups, estimate, group_sizes, halved, num_groups, side
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
    parser = _real.parser(__doc__ or "")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="two or more names in tasks.json")
    parser.add_argument("--samples", type=int, nargs="+", default=[50, 100, 200, 500, 1000])
    parser.add_argument("--draws", type=int, default=200, help="of each task or pair of tasks, head held fixed")
    parser.add_argument("--refits", type=int, default=200, help="draws with refitted heads, over all tasks; 0: none")
    parser.add_argument("--refit-samples", type=int, default=200)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "task2vec-rows", help="folder that keeps the rows"
    )
    options = parser.parse_args()

    net, l2 = _real.probe(options), DEFAULT_L2["lbfgs"]
    tasks = [real.task for real in _real.real_tasks(options.data, only=options.tasks)]
    rows = [_rows.rows(task, net, estimator="signed", l2=l2, cache=options.cache).fisher for task in tasks]
    truths = [one.double().mean(0) for one in rows]
    random = torch.Generator().manual_seed(0)

    def fixed(number: int, samples: int) -> Groups:
        return _grouped(rows[number][torch.randint(len(rows[number]), (samples,), generator=random)])

    found = []
    for samples in options.samples:
        pairs = [(i, j) for i, j in itertools.pairwise([*range(len(tasks)), 0]) for _ in range(options.draws)]
        found.append({"head": "fixed", **_count(track(pairs, f"N = {samples}"), truths, fixed, samples)})
        print(found[-1])
    if options.refits:
        images = [_rows.read(task, net) for task in tasks]

        def refitted(number: int, samples: int) -> Groups:
            return _grouped(_rows.refitted(net, images[number], samples, l2, random))

        each = -(-options.refits // len(tasks))
        pairs = [(i, j) for i, j in itertools.pairwise([*range(len(tasks)), 0]) for _ in range(each)]
        found.append({"head": "refitted", **_count(track(pairs, "refitted"), truths, refitted, options.refit_samples)})
        print(found[-1])
    result = {"probe": options.probe, "image_size": options.image_size, "estimator": "signed", "confidence": 0.95}
    described = [{"name": task.name, "images": len(task)} for task in tasks]
    print(write_result("coverage", {**result, "tasks": described, "rows": found}))


def _count(
    pairs: Iterator[tuple[int, int]], truths: list[Tensor], draw: Callable[[int, int], Groups], samples: int
) -> dict:
    """Return how often intervals hold the truth, and what the bias is before and after its removal."""
    kept: dict[str, list[list[float]]] = {"norm": [], "d_sym": [], "same": []}
    relative = []
    for i, j in pairs:
        a, b, twin = draw(i, samples), draw(j, samples), draw(i, samples)
        norm = a.mean.sum()
        spread = side(norm, a.without().sum(1), a.sizes)
        judged = {
            "norm": (estimate(norm, [spread], norm, log=True), truths[i].sum()),
            "d_sym": (_distance(a, b), sym_distances(truths[i][None], truths[j][None])[0, 0]),
            "same": (_distance(a, twin), torch.tensor(0.0, dtype=torch.float64)),
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


def _grouped(rows: Tensor) -> Groups:
    count = num_groups(len(rows))
    means = torch.stack([rows[g::count].mean(0) for g in range(count)])
    return Groups(rows.double().mean(0), means.float(), group_sizes(len(rows), count))


def _distance(a: Groups, b: Groups) -> Estimate:
    value = sym_distances(a.mean[None], b.mean[None])[0, 0]
    sides = [
        side(value, sym_distances(one.without(), other.mean[None])[:, 0], one.sizes) for one, other in ((a, b), (b, a))
    ]
    halves = [sym_distances(x[None], y[None])[0, 0] for x, y in halved([a, b])]
    return estimate(value, sides, torch.stack(halves).mean())


if __name__ == "__main__":
    main()
