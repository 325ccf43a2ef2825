"""What does the Fisher pass cost, in plain training steps? Time and memory, and where the time goes.

    python benchmarks/fisher_pass.py [--arch resnet34 resnet50 resnet18] [--batch-size 16] [--precision fp32]

A row is timed only if the operator is right up to rounding on the tensors of every layer. The error of the whole pass
is reported beside it.

A plain step is one forward and backward of the summed loss with every weight's gradient, in eval mode. Both are timed
with contiguous and with channels-last images and weights; the faster layout of each counts. On a GPU the pass is also
timed as it is replayed from CUDA graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from _measure import interleave, parser, peak_memory, print_table, ratio, say, seconds_of, stop_if, summary
from _record import read_result, write_record
from _rounding import PRECISIONS
from _step import LayerTensors, Setup, Step, relative_error

from task2vec_ext.kernels import filter_grad_sq
from task2vec_ext.kernels.routes import Route

LAYOUTS = {"contiguous": False, "channels-last": True}


def main() -> None:
    """Check, time, measure memory, print, write."""
    arguments = parser(__doc__, repeats=7)
    arguments.add_argument("--arch", nargs="+", default=["resnet34", "resnet50", "resnet18"])
    arguments.add_argument("--batch-size", type=int, help="default: 16 on the CPU, 256 on a GPU")
    arguments.add_argument("--precision", nargs="+", choices=PRECISIONS, help="default: fp32; on a GPU tf32 bf16")
    arguments.add_argument("--append", action="store_true", help="keep the other rows of a record of the same sizes")
    options = arguments.parse_args()
    cuda = options.device.startswith("cuda")
    options.batch_size = options.batch_size or (256 if cuda else 16)
    common = {name: getattr(options, name) for name in ("batch_size", "size", "device")}
    before = read_result("fisher_pass") if options.append else {}
    rows = before.get("rows", []) if all(before.get(name) == value for name, value in common.items()) else []
    failed = []
    for arch in options.arch:
        for precision in options.precision or (["tf32", "bf16"] if cuda else ["fp32"]):
            say(f"{arch} {precision}")
            row = measure(Setup(arch, options.batch_size, options.size, options.device, precision), options.repeats)
            rows = [other for other in rows if (other["arch"], other["precision"]) != (arch, precision)] + [row]
            path = write_record("fisher_pass", {**common, "rows": rows})
            report(row)
            failed += [f"{arch} {precision}: {row['failed']}"] if "failed" in row else []
    print(path)
    stop_if(failed)


def measure(setup: Setup, repeats: int, *, memory: bool = True, graphs: bool | None = None) -> dict[str, Any]:
    """Return time and memory of both ways in both layouts, their ratios, and the breakdown of ours."""
    row: dict[str, Any] = {"arch": setup.arch, "precision": setup.precision, "errors": {}}
    steps = {layout: replace(setup, channels_last=last).build() for layout, last in LAYOUTS.items()}
    for layout, step in steps.items():
        row["errors"][layout], failed = step.check()
        if failed is not None:
            return {**row, "failed": f"{layout}, {failed}; nothing timed"}
    for name in ("relative_error", "relative_error_to_float64"):
        row[name] = max(errors[name] for errors in row["errors"].values())
    ways = {}
    for layout, step in steps.items():
        ways[f"plain {layout}"], ways[f"fisher {layout}"] = step.plain, step.fisher
    for way in ways.values():
        way()
    if setup.device.startswith("cuda") if graphs is None else graphs:
        step = steps["channels-last"]
        for _ in range(2):  # the second one records
            step.replayed()
        row["graphs"] = {
            "recorded": step.graphs.recorded,
            "relative_error": relative_error(step.replayed(), step.fisher()),
        }
        ways["graphs"] = step.replayed
    seconds = interleave(ways, repeats, setup.device)
    plain, fisher = (fastest(seconds, kind) for kind in ("plain", "fisher"))
    row |= {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "plain": plain,
        "fisher": fisher,
        "time_ratio": ratio(seconds[fisher], seconds[plain]),
        "images_per_second": setup.batch_size / summary(seconds[fisher])["median"],
        "breakdown": breakdown(steps[fisher.split()[1]], repeats, setup.device),
    }
    row["breakdown"]["whole pass"] = summary(seconds[fisher])["median"]
    if "graphs" in row:
        row["graphs"]["time_ratio"] = ratio(seconds["graphs"], seconds[plain])
    del steps, ways, step
    if memory:
        row["peak_bytes"] = {name: peak_memory(build, setup, name, device=setup.device) for name in (plain, fisher)}
        row["memory_ratio"] = row["peak_bytes"][fisher] / row["peak_bytes"][plain]
    return row


def fastest(seconds: Mapping[str, list[float]], kind: str) -> str:
    """Return the way of this kind, over the layouts, with the smallest median."""
    return min((name for name in seconds if name.startswith(kind)), key=lambda name: summary(seconds[name])["median"])


def build(setup: Setup, way: str) -> Callable[[], object]:
    """Return one way's step, warmed up on one small image: what the first call loads is not the step's memory."""
    kind, layout = way.split()
    setup = replace(setup, channels_last=LAYOUTS[layout])
    getattr(replace(setup, batch_size=1, size=64).build(), kind)()
    return getattr(setup.build(), kind)


def breakdown(step: Step, repeats: int, device: str) -> dict[str, Any]:
    """Return median seconds of the folded probe: forward, input gradients, and the operator by route and by layer.

    Forward also without `bias_relu`, which a GPU has.

    The operator is timed alone, on each layer's own tensors. The parts add up to the whole pass only if nothing
    overlaps.
    """
    seconds: dict[str, list[float]] = {layer.name: [] for layer in step.layers}
    routes: dict[str, Route] = {}

    def operator(layer: LayerTensors) -> None:
        routes[layer.name] = layer.route
        run = partial(filter_grad_sq, layer.input, layer.grad_output, *layer.layer)
        seconds[layer.name].append(seconds_of(run, device))

    for _ in range(repeats):
        step.input_gradients(operator)
    parts: dict[str, Callable[[], object]] = {
        "forward": step.forward,
        "forward, unfused": partial(step.forward, fused=False),
        "with input gradients": step.input_gradients,
    }
    step.forward(fused=False)
    timed = {name: summary(values)["median"] for name, values in interleave(parts, repeats, device).items()}
    layers = {name: summary(values)["median"] for name, values in seconds.items()}
    by_route = {route: sum(layers[name] for name in layers if routes[name] == route) for route in set(routes.values())}
    return {
        "forward": timed["forward"],
        "forward, unfused": timed["forward, unfused"],
        "input gradients": timed["with input gradients"] - timed["forward"],
        "operator": dict(sorted(by_route.items())),
        "layers_by_route": dict(sorted(Counter(routes.values()).items())),
        "layers": {name: {"route": routes[name], "seconds": layers[name]} for name in layers},
    }


def report(row: dict[str, Any]) -> None:
    """Print one network's figures."""
    if "failed" in row:
        print(f"{row['arch']} {row['precision']}: {row['failed']}")
        return
    parts = row["breakdown"]
    plain = row["seconds"][row["plain"]]["median"]
    lines: list[tuple[Any, ...]] = [
        (row["plain"], plain, 1.0, _gigabytes(row, "plain")),
        (row["fisher"], parts["whole pass"], row["time_ratio"]["median"], _gigabytes(row, "fisher")),
        *((f"  {name}", parts[name], parts[name] / plain, None) for name in ("forward", "forward, unfused")),
        ("  input gradients", parts["input gradients"], parts["input gradients"] / plain, None),
    ]
    if "graphs" in row:
        name = "replayed from CUDA graphs" if row["graphs"]["recorded"] else "CUDA graphs not recorded"
        lines.insert(2, (name, row["seconds"]["graphs"]["median"], row["graphs"]["time_ratio"]["median"], None))
    for route, seconds in parts["operator"].items():
        lines.append((f"  {route}, {parts['layers_by_route'][route]} layers", seconds, seconds / plain, None))
    share = max(errors["operator"]["error_to_limit"] for errors in row["errors"].values())
    title = (
        f"{row['arch']} {row['precision']}: {row['images_per_second']:.1f} images/s, error: operator {share:.2f} of "
        f"its limit, pass {row['relative_error']:.1e}"
    )
    if "memory_ratio" in row:
        title += f", memory ÷ plain {row['memory_ratio']:.2f}"
    print_table(title, ["", "seconds", "÷ plain", "peak GB"], lines)


def _gigabytes(row: dict[str, Any], way: str) -> float | None:
    return row["peak_bytes"][row[way]] / 1e9 if "peak_bytes" in row else None


if __name__ == "__main__":
    main()
