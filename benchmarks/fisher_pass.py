"""What does the Fisher pass cost, in plain training steps? Time and memory, and where the time goes.

    python benchmarks/fisher_pass.py [--arch resnet34 resnet50 resnet18] [--batch-size 16] [--precision fp32]

A plain step is one forward and backward of the summed loss with every weight's gradient, in eval mode. Both are timed
with contiguous and with channels-last images and weights; the faster layout of each counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from _measure import check, interleave, parser, peak_memory, print_table, ratio, say, seconds_of, summary
from _record import write_record
from _step import LIMIT, PRECISIONS, Setup, Step
from torch import Tensor

from task2vec_ext.kernels import filter_grad_sq
from task2vec_ext.kernels.geometry import conv_geometry
from task2vec_ext.kernels.routes import Route, choose_route
from task2vec_ext.probe.probe import frozen
from task2vec_ext.probe.watch import ConvUse, Watch

LAYOUTS = {"contiguous": False, "channels-last": True}


def main() -> None:
    """Check, time, measure memory, print, write."""
    arguments = parser(__doc__, repeats=7)
    arguments.add_argument("--arch", nargs="+", default=["resnet34", "resnet50", "resnet18"])
    arguments.add_argument("--batch-size", type=int, help="default: 16 on the CPU, 256 on a GPU")
    arguments.add_argument("--precision", nargs="+", choices=PRECISIONS, help="default: fp32; on a GPU tf32 bf16")
    options = arguments.parse_args()
    cuda = options.device.startswith("cuda")
    options.batch_size = options.batch_size or (256 if cuda else 16)
    rows = []
    for arch in options.arch:
        for precision in options.precision or (["tf32", "bf16"] if cuda else ["fp32"]):
            say(f"{arch} {precision}")
            setup = Setup(arch, options.batch_size, options.size, options.device, precision)
            rows.append(measure(setup, options.repeats))
            report(rows[-1])
            common = {name: getattr(options, name) for name in ("batch_size", "size", "device")}
            path = write_record("fisher_pass", {**common, "rows": rows})
    print(path)


def measure(setup: Setup, repeats: int, *, memory: bool = True) -> dict[str, Any]:
    """Return time and memory of both ways in both layouts, their ratios, and the breakdown of ours."""
    steps = {layout: replace(setup, channels_last=last).build() for layout, last in LAYOUTS.items()}
    for layout, step in steps.items():
        errors = step.errors()
        check(f"{setup.arch} {layout}", errors["relative_error"], LIMIT[setup.precision])
    ways = {}
    for layout, step in steps.items():
        ways[f"plain {layout}"], ways[f"fisher {layout}"] = step.plain, step.fisher
    for way in ways.values():
        way()
    seconds = interleave(ways, repeats, setup.device)
    plain, fisher = (fastest(seconds, kind) for kind in ("plain", "fisher"))
    row: dict[str, Any] = {
        "arch": setup.arch,
        "precision": setup.precision,
        **errors,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "plain": plain,
        "fisher": fisher,
        "time_ratio": ratio(seconds[fisher], seconds[plain]),
        "images_per_second": setup.batch_size / summary(seconds[fisher])["median"],
        "breakdown": breakdown(steps[fisher.split()[1]], repeats, setup.device),
    }
    row["breakdown"]["whole pass"] = summary(seconds[fisher])["median"]
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

    The operator is timed alone, on each layer's own tensors. The parts add up to the whole pass only if nothing
    overlaps.
    """
    seconds: dict[str, list[float]] = {layer.name: [] for layer in step.layers}
    routes: dict[str, Route] = {}

    def operator(name: str, use: ConvUse, grad_output: Tensor) -> None:
        input = use.input.detach().to(grad_output.dtype)  # under autocast the layer computes in a narrower type
        if input.device.type == "cpu" and input.dtype == torch.bfloat16:  # which the operator does not take on the CPU
            input, grad_output = input.float(), grad_output.float()
        layer = (use.weight.shape, use.stride, use.padding, use.dilation, use.groups)
        routes[name] = choose_route(conv_geometry(input, grad_output, *layer), input.device.type)
        seconds[name].append(seconds_of(lambda: filter_grad_sq(input, grad_output, *layer), device))

    for _ in range(repeats):
        input_gradients(step, operator)
    parts = {"forward": step.forward, "with input gradients": lambda: input_gradients(step)}
    timed = {name: summary(values)["median"] for name, values in interleave(parts, repeats, device).items()}
    layers = {name: summary(values)["median"] for name, values in seconds.items()}
    by_route = {route: sum(layers[name] for name in layers if routes[name] == route) for route in set(routes.values())}
    return {
        "forward": timed["forward"],
        "input gradients": timed["with input gradients"] - timed["forward"],
        "operator": dict(sorted(by_route.items())),
        "layers_by_route": dict(sorted(Counter(routes.values()).items())),
        "layers": {name: {"route": routes[name], "seconds": layers[name]} for name in layers},
    }


def input_gradients(step: Step, each: Callable[[str, ConvUse, Tensor], None] | None = None) -> None:
    """Run forward and backward without any weight gradient; `each` is given every layer's use and grad_output."""

    def follow(name: str, use: ConvUse, output: Tensor) -> Tensor:
        if not output.requires_grad:  # the first layer: the graph starts here; cloned, as an in-place ReLU may follow
            output = output.detach().requires_grad_().clone()
        if each is not None:
            output.register_hook(lambda grad_output: each(name, use, grad_output))
        return output

    probe = step.faster
    weights = {layer.name: probe.weight(layer.name) for layer in step.layers}
    with frozen(probe.module), torch.enable_grad(), step.context, Watch(weights, follow):
        features = probe.features(step.batch.images)
    features.sum().backward()


def report(row: dict[str, Any]) -> None:
    """Print one network's figures."""
    parts = row["breakdown"]
    plain = row["seconds"][row["plain"]]["median"]
    lines: list[tuple[Any, ...]] = [
        (row["plain"], plain, 1.0, _gigabytes(row, "plain")),
        (row["fisher"], parts["whole pass"], row["time_ratio"]["median"], _gigabytes(row, "fisher")),
        ("  forward", parts["forward"], parts["forward"] / plain, None),
        ("  input gradients", parts["input gradients"], parts["input gradients"] / plain, None),
    ]
    for route, seconds in parts["operator"].items():
        lines.append((f"  {route}, {parts['layers_by_route'][route]} layers", seconds, seconds / plain, None))
    title = (
        f"{row['arch']} {row['precision']}: {row['images_per_second']:.1f} images/s, error {row['relative_error']:.1e}"
    )
    if "memory_ratio" in row:
        title += f", memory ÷ plain {row['memory_ratio']:.2f}"
    print_table(title, ["", "seconds", "÷ plain", "peak GB"], lines)


def _gigabytes(row: dict[str, Any], way: str) -> float | None:
    return row["peak_bytes"][row[way]] / 1e9 if "peak_bytes" in row else None


if __name__ == "__main__":
    main()
