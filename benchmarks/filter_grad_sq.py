"""How near to the machine's ceilings is `filter_grad_sq`, and does every layer get its fastest route?

    python benchmarks/filter_grad_sq.py [--arch resnet18 resnet34 resnet50] [--batch-size 8] [--precision fp32]

Every distinct convolution of the networks by every route, on random tensors that no cache holds: time for one sample
(on a GPU that of a replayed CUDA graph, by events, and beside it the host's own work in a call); GFLOP/s (a
multiply-add is two), counted by the direct formula and by the route's own; GB/s of reading input and grad_output once.
The ceilings are measured in the same run: a square matrix product and a copy. A route predicted to cost more than 20
times the cheapest is not timed, nor is one whose error is more than rounding explains.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from _measure import (
    captured,
    gpu_seconds_of,
    host_seconds_of,
    interleave,
    parser,
    print_table,
    say,
    stop_if,
    summary,
)
from _record import write_record
from _rounding import PRECISIONS, Precision, expect
from _step import random_probe, set_precision
from torch import Tensor, nn

from task2vec_ext.kernels import filter_grad_sq
from task2vec_ext.kernels.geometry import ConvGeometry, conv_geometry
from task2vec_ext.kernels.routes import ROUTES, available_routes, choose_route, route_cost

SKIP = 20
"""A route predicted to cost this many times the cheapest is not run: it would take most of the benchmark's time."""

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
FLUSH_BYTES = 256 << 20  # more than any last-level cache a thread can fill


def main() -> None:
    """Check, time, print, write."""
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--arch", nargs="+", default=["resnet18", "resnet34", "resnet50"])
    arguments.add_argument("--batch-size", type=int, help="default: 8 on the CPU, 256 on a GPU")
    arguments.add_argument("--precision", nargs="+", choices=PRECISIONS, help="default: fp32; on a GPU tf32 bf16")
    options = arguments.parse_args()
    cuda = options.device.startswith("cuda")
    options.batch_size = options.batch_size or (256 if cuda else 8)
    common = {name: getattr(options, name) for name in ("arch", "batch_size", "size", "device")}
    tables: list[dict[str, Any]] = []
    for precision in options.precision or (["tf32", "bf16"] if cuda else ["fp32"]):
        for table in measure(options, precision):
            path = write_record("filter_grad_sq", {**common, "precisions": [*tables, table]})
        tables.append(table)
        report(table)
    print(path)
    failed = [
        f"{table['precision']}, {row['shape']}, {route}: {figures['failed']}"
        for table in tables
        for row in table["shapes"]
        for route, figures in row["routes"].items()
        if "failed" in figures
    ]
    stop_if(failed)


def measure(options: argparse.Namespace, precision: Precision) -> Iterator[dict[str, Any]]:
    """Yield, after every shape, the table so far: the ceilings; time, rates and error of every shape and route."""
    set_precision(precision, options.device)
    ceilings = measure_ceilings(DTYPES[precision], options.device)
    rows: list[dict[str, Any]] = []
    for conv, uses in convolutions(options.arch, options.size).items():
        say(describe(conv))
        rows.append({**measure_shape(conv, options, precision), "layers": uses})
        yield {"precision": precision, "ceilings": ceilings, "shapes": rows, **totals(rows, ceilings)}


def convolutions(archs: list[str], size: int) -> Counter[ConvGeometry]:
    """Return every distinct convolution of the networks on one image, and the number of layers that have it."""
    found: Counter[ConvGeometry] = Counter()

    def count(module: nn.Conv2d, args: tuple[Tensor, ...], output: Tensor) -> None:
        layer = (module.weight.shape, module.stride, module.padding, module.dilation, module.groups)
        found[conv_geometry(args[0], output, *layer)] += 1

    for arch in archs:
        probe = random_probe(arch)
        for layer in probe.layers():
            probe.module.get_submodule(layer.name).register_forward_hook(count)
        with torch.no_grad():
            probe.features(torch.zeros(1, 3, size, size))
    return found


def measure_shape(conv: ConvGeometry, options: argparse.Namespace, precision: Precision) -> dict[str, Any]:
    """Return one shape's figures."""
    device, samples, dtype = options.device, options.batch_size, DTYPES[precision]
    cuda = device.startswith("cuda")
    generator = torch.Generator(device).manual_seed(0)
    layout = {"dtype": dtype, "memory_format": torch.channels_last}  # as the Fisher pass runs
    input, grad_output = (
        torch.randn(samples, *sizes, generator=generator, device=device).to(**layout)
        for sizes in ((conv.channels, *conv.size), (conv.filters, *conv.out_size))
    )
    shape = (conv.filters, conv.group_channels, *conv.kernel)
    arguments = (shape, conv.stride, conv.padding, conv.dilation, conv.groups)
    kind = torch.device(device).type
    costs = {route: route_cost(route, conv, kind) for route in available_routes(conv, kind)}
    routes: dict[str, dict[str, Any]] = {}
    ways: dict[str, Callable[[], object]] = {}
    for route, cost in costs.items():
        if cost > SKIP * min(costs.values()):
            routes[route] = {"skipped": f"predicted cost {cost / min(costs.values()):.0f} times the cheapest"}
            continue
        way = partial(filter_grad_sq, input, grad_output, *arguments, route=route)
        expected = expect(input[:2], grad_output[:2], arguments, route, precision)
        routes[route] = expected.compare(way()[:2])._asdict()
        if not routes[route]["error_to_limit"] <= 1:
            routes[route]["failed"] = f"an error of {routes[route]['error_to_limit']:.1f} times its limit; not timed"
            continue
        ways[route] = way
        if cuda:
            routes[route]["host_seconds"] = host_seconds_of(way, device)
            replay = captured(way)
            routes[route]["timed"] = "events" if replay is None else "graph"
            ways[route] = replay or way
    flush = torch.zeros(FLUSH_BYTES, dtype=torch.uint8, device=device)
    clock = gpu_seconds_of if cuda else None
    seconds = interleave(ways, options.repeats, device, before=lambda: flush.add_(1), clock=clock)
    moved = (input[0].numel() + grad_output[0].numel()) * input.element_size() + 4 * conv.filters
    for route, values in seconds.items():
        sample = summary([value / samples for value in values])
        own = multiply_adds(route, conv, kind)
        routes[route] |= {
            "seconds_a_sample": sample,
            "gflops_direct": 2e-9 * multiply_adds("direct", conv, kind) / sample["median"],
            "gflops_own": 2e-9 * own / sample["median"],
            "gb_a_second": 1e-9 * moved / sample["median"],
        }
    medians = {route: routes[route]["seconds_a_sample"]["median"] for route in seconds}
    chosen = choose_route(conv, kind)
    return {
        "shape": describe(conv),
        "multiply_adds": {route: multiply_adds(route, conv, kind) for route in costs},
        "chosen": chosen,
        "fastest": min(medians, key=medians.__getitem__, default=None),
        "chosen_to_fastest": medians[chosen] / min(medians.values()) if chosen in medians else None,
        "routes": routes,
    }


def describe(conv: ConvGeometry) -> str:
    """Return a shape in short: ``64→128 3×3/2 at 56``."""
    stride = f"/{conv.stride[0]}" if conv.stride != (1, 1) else ""
    groups = f" in {conv.groups} groups" if conv.groups > 1 else ""
    return f"{conv.channels}→{conv.filters} {conv.kernel[0]}×{conv.kernel[1]}{stride} at {conv.size[0]}{groups}"


def multiply_adds(route: str, conv: ConvGeometry, device_type: str) -> int:
    """Return a route's own multiply-adds for one sample, by its formula (`task2vec_ext.kernels.routes.route_cost`)."""
    q = conv.positions
    if route == "direct":
        return conv.filters * conv.patch_size * q
    if route == "winograd":
        tiles = -(-conv.out_size[0] // 4) * -(-conv.out_size[1] // 4)
        return 36 * tiles * conv.filters * conv.group_channels
    if route == "gram":
        return q**2 * (conv.groups * conv.patch_size + conv.filters)
    shifts = conv.groups * conv.kernel[0] * conv.kernel[1] * q**2
    if device_type == "cpu":  # half of two symmetric matrices
        phases = min(conv.stride[0], conv.kernel[0]) * min(conv.stride[1], conv.kernel[1])
        return (q**2 * (phases * conv.channels + conv.filters) + shifts) // 2
    pixels = conv.span(0, conv.out_size[0]) * conv.span(1, conv.out_size[1])
    return pixels**2 * conv.channels + shifts + q**2 * conv.filters


def measure_ceilings(dtype: torch.dtype, device: str) -> dict[str, float]:
    """Return what the machine reaches: GFLOP/s of a matrix product in `dtype`, GB/s of a copy (read and written)."""
    side = 8192 if device.startswith("cuda") else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(FLUSH_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    ways: dict[str, Callable[[], object]] = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    for way in ways.values():
        way()
    clock = gpu_seconds_of if device.startswith("cuda") else None
    best = {name: min(values) for name, values in interleave(ways, 10, device, clock=clock).items()}
    return {"gflops": 2e-9 * side**3 / best["product"], "gb_a_second": 2e-9 * FLUSH_BYTES / best["copy"]}


def totals(rows: list[dict[str, Any]], ceilings: dict[str, float]) -> dict[str, Any]:
    """Return, over all layers, how near the direct route comes to the ceiling, and how good the chosen routes are."""
    direct = [row for row in rows if row["chosen"] == "direct" and row["chosen_to_fastest"] is not None]
    work = sum(2e-9 * row["multiply_adds"]["direct"] * row["layers"] for row in direct)
    seconds = sum(row["routes"]["direct"]["seconds_a_sample"]["median"] * row["layers"] for row in direct)
    return {
        "direct_share_of_ceiling": work / seconds / ceilings["gflops"] if direct else None,
        "shapes_with_their_fastest_route": sum(row["chosen"] == row["fastest"] for row in rows),
        "worst_chosen_to_fastest": max((row["chosen_to_fastest"] or 0.0 for row in rows), default=0.0),
        **{
            f"worst_{error}": {
                route: max((row["routes"].get(route, {}).get(error, 0.0) for row in rows), default=0.0)
                for route in ROUTES
            }
            for error in ("relative_error", "error_to_limit")
        },
    }


def report(table: dict[str, Any]) -> None:
    """Print one precision's figures."""
    lines = []
    for row in table["shapes"]:
        for route, figures in row["routes"].items():
            name = f"{row['shape']} ×{row['layers']}" if route == "direct" else ""
            marks = "chosen" * (route == row["chosen"]) + ", fastest" * (route == row["fastest"])
            if "seconds_a_sample" not in figures:
                lines.append((name, route, *[None] * 6, "skipped" if "skipped" in figures else figures["failed"]))
                continue
            lines.append(
                (
                    name,
                    route,
                    1e6 * figures["seconds_a_sample"]["median"],
                    figures["gflops_direct"],
                    figures["gflops_own"],
                    figures["gb_a_second"],
                    1e6 * figures["host_seconds"] if "host_seconds" in figures else None,
                    f"{figures['relative_error']:.0e}, {figures['error_to_limit']:.2f}",
                    marks.strip(", "),
                )
            )
    ceilings = table["ceilings"]
    print_table(
        f"{table['precision']}; ceilings: matrix product {ceilings['gflops']:,.0f} GFLOP/s, "
        f"copy {ceilings['gb_a_second']:,.0f} GB/s",
        [
            "shape × layers",
            "route",
            "µs a sample",
            "GFLOP/s, direct's count",
            "own count",
            "GB/s",
            "host µs a call",
            "error, of limit",
            "",
        ],
        lines,
    )
    share = table["direct_share_of_ceiling"]
    print(
        f"{table['shapes_with_their_fastest_route']} of {len(table['shapes'])} shapes get their fastest route, the "
        f"worst choice takes {table['worst_chosen_to_fastest']:.2f} times as long; where direct is chosen it reaches "
        f"{'–' if share is None else f'{share:.0%}'} of the matrix product's."
    )


if __name__ == "__main__":
    main()
