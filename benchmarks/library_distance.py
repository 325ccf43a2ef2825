"""Does a distance that looks at the whole library find a task's own domain, or its expert, better than d_sym?

    python benchmarks/library_distance.py --data DIR --keep DIR [--errors FILE]

The form is chosen on one half of the tasks, by mean average precision, and reported on the other half. Each half is a
library of its own. Tasks are embedded from the training half of their images (the half that experts are trained on).
Intervals are of paired differences, with tasks or whole domains resampled. Then: what the reference must be made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _tasks
import torch
from _library import BASELINES, PROPOSALS, Embedded, Found, embed, halves, kept, retrieval
from _record import write_record
from _references import by_reference, relative, small_libraries
from torch import Tensor

from task2vec_ext.experts import IMAGENET, ErrorMatrix
from task2vec_ext.selection.measures import chosen_error, spearman
from task2vec_ext.settings import EmbedSettings

ERRORS = Path(__file__).with_name("results") / "cpu-x86_64-2-cores" / "model_selection_errors.csv"
RESAMPLES = 10_000
BUILT_IN = "library_correlation"
PAIRS = [*((BUILT_IN, other) for other in BASELINES), ("best of the first half", BUILT_IN)]


def main() -> None:
    """Embed, choose, report, write."""
    options = arguments()
    tasks = _tasks.real_tasks(options.data)
    parts = halves(tasks)
    if options.kept_only:
        tasks = [task for task in tasks if kept(task, options.keep).exists()]
    everything = embed(tasks, _tasks.probe(options), EmbedSettings(), options.num_samples, options.keep)
    first, second = (everything.subset([one.name for one in half if one in tasks]) for half in parts)

    rules = {**BASELINES, BUILT_IN: relative, **PROPOSALS}
    tried = {name: retrieval(of(first), first.tasks) for name, of in rules.items()}
    best = max(PROPOSALS, key=lambda name: float(tried[name].precision.nanmean()))
    reported = {**BASELINES, BUILT_IN: relative, "best of the first half": PROPOSALS[best]}
    matrices = {name: of(second) for name, of in reported.items()}
    result: dict[str, Any] = {
        "tasks": [len(first.tasks), len(second.tasks)],
        "images": sum(one.num_samples for one in everything.embeddings),
        "best_of_the_first_half": best,
        "first_half": {name: means(found) for name, found in tried.items()},
    }
    domains = [_tasks.domain(task) for task in second.tasks]
    for key, apart in (("second_half", False), ("second_half_no_shared_image", True)):
        found = {name: retrieval(matrix, second.tasks, apart=apart) for name, matrix in matrices.items()}
        result[key] = {
            **{name: means(one) for name, one in found.items()},
            "differences": differences(found, domains),
        }
    increases = {name: increase(of(everything), everything, second, options.errors) for name, of in reported.items()}
    result["expert_choice"] = {
        **{
            name: {"increase": float(rows[0].mean()), "spearman": float(rows[1].mean())}
            for name, rows in increases.items()
        },
        "tasks": len(next(iter(increases.values()))[0]),
        "differences": {f"{a} − {b}": interval(increases[a][0] - increases[b][0]) for a, b in PAIRS},
    }
    result["reference"] = {"second half": by_reference(second, first), "first half": by_reference(first, second)}
    result["small_libraries"] = {"second half": small_libraries(second), "first half": small_libraries(first)}
    show(result)
    print(write_record("library_distance", result))


def arguments() -> Any:
    """Return the options."""
    parser = _tasks.parser(__doc__)
    parser.set_defaults(image_size=96)
    parser.add_argument(
        "--keep", type=Path, required=True, help="folder that keeps the embeddings: a second run resumes"
    )
    parser.add_argument("--errors", type=Path, default=ERRORS, help="errors of experts on tasks, of model_selection.py")
    parser.add_argument("--num-samples", type=int, default=80, help="images of each task at most")
    parser.add_argument("--kept-only", action="store_true", help="embed nothing: only the tasks that are kept")
    return parser.parse_args()


def means(found: Found) -> dict[str, float]:
    """Return own-domain share and mean average precision."""
    return {
        "own_domain": float(found.own.nanmean()),
        "mean_average_precision": float(found.precision.nanmean()),
        "queries": int((~found.own.isnan()).sum()),
    }


def differences(found: dict[str, Found], domains: list[str]) -> dict[str, Any]:
    """Return paired differences of `PAIRS`, with intervals over tasks and domains."""
    rows = {}
    for a, b in PAIRS:
        for measure in ("own", "precision"):
            gap = getattr(found[a], measure) - getattr(found[b], measure)
            rows[f"{a} − {b}: {measure}"] = interval(gap, domains)
    return rows


def interval(values: Tensor, clusters: list[str] | None = None) -> dict[str, Any]:
    """Return the mean of the values that are not NaN with 95 % bootstrap intervals, over tasks and over clusters."""
    known = ~values.isnan()
    values = values[known].double()
    generator = torch.Generator().manual_seed(0)

    def ends(sums: Tensor, counts: Tensor) -> list[float]:
        """Of groups of tasks, each resampled as a whole."""
        picks = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
        drawn = sums[picks].sum(1) / counts[picks].sum(1)
        return drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()

    result = {"mean": float(values.mean()), "over_tasks": ends(values, torch.ones_like(values))}
    if clusters is not None:
        kept = [cluster for cluster, here in zip(clusters, known.tolist(), strict=True) if here]
        members = torch.tensor([[one == cluster for one in kept] for cluster in dict.fromkeys(kept)]).double()
        result["over_domains"] = ends(members @ values, members.sum(1))
    return result


def increase(distances: Tensor, everything: Embedded, targets: Embedded, errors: Path) -> tuple[Tensor, Tensor]:
    """Return the chosen expert's error over the best one's minus 1, and Spearman's ρ, of targets with known errors.

    Chosen is the expert whose task is nearest; the target's own expert is left out.
    """
    matrix, names = ErrorMatrix.read_csv(errors), everything.names
    experts = [name for name in matrix.experts if name != IMAGENET and name in names]
    rows, found = [names.index(name) for name in experts], []
    for name in (name for name in targets.names if name in matrix.tasks):
        own = torch.tensor([expert == name for expert in experts])
        known = matrix.select(experts=experts).column(name).masked_fill(own, torch.nan)
        scores = -distances[rows, names.index(name)]
        least = float(known.nan_to_num(nan=torch.inf).min())
        found.append((chosen_error(scores, known) / least - 1, spearman(scores, known)))
    increases, ranks = torch.tensor(found, dtype=torch.float64).T
    return increases, ranks


def show(result: dict[str, Any]) -> None:
    """Print the result."""
    print(f"best on {result['tasks'][0]} tasks: {result['best_of_the_first_half']}")
    for key in ("first_half", "second_half", "second_half_no_shared_image"):
        print(key)
        for name, row in result[key].items():
            if name != "differences":
                print(f"{name:>46}  own domain {row['own_domain']:.3f}  mAP {row['mean_average_precision']:.3f}")
        for name, row in result[key].get("differences", {}).items():
            spans = "  ".join(f"{over} [{low:+.3f}, {high:+.3f}]" for over, (low, high) in list(row.items())[1:])
            print(f"{name:>46}  {row['mean']:+.3f}  {spans}")
    for part in ("expert_choice", "reference", "small_libraries"):
        print(part)
        for name, row in result[part].items():
            print(f"{name:>46}  {row}")


if __name__ == "__main__":
    main()
