"""Are better experts chosen with cross-fitted heads? Measured errors of experts, embeddings with both kinds of head.

    python benchmarks/selection_by_head.py --data DIR --keep DIR [--errors FILE]

The errors are those that model_selection.py measured: no expert is trained or run. Embeddings are of the same images as
there. Selectors that learn are fitted to all other tasks. α: the mean relative increase of error by its value.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import _tasks
import torch
from _record import write_record
from library_distance import ERRORS

from task2vec_ext import Embedding, Probe, cross_distances, fisher_embed
from task2vec_ext.experts import IMAGENET, ErrorMatrix
from task2vec_ext.fisher import HeadSettings
from task2vec_ext.selection import SELECTORS, TaskFacts
from task2vec_ext.selection.distances import increases
from task2vec_ext.selection.evaluate import MEASURES, Table, evaluate
from task2vec_ext.settings import EmbedSettings

HEADS = {"cross-fitted": HeadSettings(), "one head, version 0.2": HeadSettings(l2=1e-2, cross_fit=None)}
NAMES = ("chance", "sym", "asym", "asym_scaled", "asym_fitted", "library_correlation")  # model2vec takes long
ALL_ALPHAS = (0.0, 0.15, 0.5, 1.0, 2.0, 4.0)
RESAMPLES = 10_000


def main() -> None:
    """Embed, choose, compare, write."""
    options = arguments()
    errors = ErrorMatrix.read_csv(options.errors).without_own()
    wanted = {name for name in (*errors.tasks, *errors.experts) if name != IMAGENET}
    tasks = [_tasks.part(task).train for task in _tasks.real_tasks(options.data, only=list(wanted))]
    net, tables, result = _tasks.probe(options), {}, {}
    for name, head in HEADS.items():
        known = {task.name: TaskFacts(task.name, embedded(task, net, head, options)) for task in tasks}
        tables[name] = evaluate(errors, [SELECTORS[one] for one in NAMES], known)
        result[name] = {**tables[name].to_json()["selectors"], "alpha": by_alpha(errors, known)}
    result["cross-fitted − one head"] = {one: difference(*tables.values(), one) for one in NAMES}
    result["minus sym, cross-fitted"] = {
        one: tables["cross-fitted"].difference(one, "sym")._asdict() for one in NAMES if one != "sym"
    }
    for name, row in result.items():
        print(name, *row.items(), sep="\n  ")
    print(write_record("selection_by_head", {"tasks": len(errors.tasks), **result}))


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = _tasks.parser(__doc__)
    parser.set_defaults(image_size=96)
    parser.add_argument(
        "--keep", type=Path, required=True, help="folder that keeps the embeddings: a second run resumes"
    )
    parser.add_argument("--errors", type=Path, default=ERRORS, help="errors of experts on tasks")
    parser.add_argument("--num-samples", type=int, default=200, help="images of each task at most")
    return parser.parse_args()


def embedded(task: Any, net: Probe, head: HeadSettings, options: argparse.Namespace) -> Embedding:
    """Return a task's embedding, made unless it is kept."""
    options.keep.mkdir(parents=True, exist_ok=True)
    file = options.keep / f"{quote(task.name, safe='')}-{head.cross_fit or 'one'}.safetensors"
    if not file.exists():
        settings = EmbedSettings(head=head, num_samples=_tasks.num_samples(task, options.num_samples))
        fisher_embed(task, net, settings=settings, progress=False).save(file)
        print(file.stem, flush=True)
    return Embedding.load(file)


def by_alpha(errors: ErrorMatrix, known: dict[str, TaskFacts]) -> dict[str, Any]:
    """Return the mean increase of error by d_asym's α, and the spread of its two terms over the experts."""
    names = [name for name in errors.experts if name != IMAGENET]
    few = errors.select(experts=names)
    sources, targets = ([known[name].embedding for name in some] for some in (names, errors.tasks))
    zero, one = (cross_distances(sources, targets, "asym", alpha=alpha) for alpha in (0.0, 1.0))
    pull = (zero - one)[:, 0]
    return {
        **{str(alpha): float(increases(-(zero - alpha * pull[:, None]), few.errors).nanmean()) for alpha in ALL_ALPHAS},
        "standard deviation of d_sym(a, t0)": float(pull.std()),
        "standard deviation of d_sym(a, b)": float(zero.std(0).mean()),
    }


def difference(one: Table, other: Table, selector: str) -> dict[str, float]:
    """Return the first table's mean increase of error minus the second's, paired by task, with a 95 % interval."""
    gap = torch.stack([table.row(selector).outcomes[MEASURES.index("increase")] for table in (one, other)])
    gap = (gap[0] - gap[1])[~gap.isnan().any(0)]
    picks = torch.randint(len(gap), (RESAMPLES, len(gap)), generator=torch.Generator().manual_seed(0))
    low, high = gap[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=gap.dtype)).tolist()
    return {"value": float(gap.mean()), "low": low, "high": high}


if __name__ == "__main__":
    main()
