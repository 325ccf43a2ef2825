"""What do we expect of an H100? The Fisher pass, d_sym and local_noise on paper: nothing here was measured on a GPU.

    python benchmarks/gpu_model.py [--arch resnet34 resnet50] [--precision tf32 bf16] [--host-ms 6 2 0.3] [--layers]

For every convolution of a network and a batch of 256 the time of each route follows from FLOP, bytes, waves of blocks
and the instruction counts of our machine code (sm_90, nvcc 13.0: `cuobjdump -sass`), before and after a change of the
kernels. A number is good to 25 % at best; each constant says what it is and can be replaced once it is measured
(`python benchmarks/filter_grad_sq.py` on a GPU). Needs no GPU.
"""

from __future__ import annotations

import argparse
from math import ceil
from typing import Any, NamedTuple

import torch
from _measure import print_table
from _step import random_probe
from filter_grad_sq import convolutions, describe

from task2vec_ext.kernels.geometry import ConvGeometry
from task2vec_ext.kernels.routes import choose_route
from task2vec_ext.probe.folding import fold

BATCH = 256
MULTIPROCESSORS, SCHEDULERS, CLOCK = 132, 4, 1.755e9
"""H100 SXM; each scheduler issues one instruction of a warp in a cycle."""
BANDWIDTH = 2.8e12
"""Bytes a second that a copy reaches, of 3.35e12 on the data sheet."""
L2 = 5e12
"""Bytes a second from the L2 cache: what public microbenchmarks find."""
PEAK = {"tf32": 495e12, "bf16": 989e12}
"""FLOP a second of the tensor cores, dense (data sheet)."""
MMA_CYCLES = 4 / 0.63
"""A scheduler's cycles for one m16n8 product of 32 bytes depth: 4 at the peak, of which mma.sync (in place of wgmma)
reaches 63 % in public microbenchmarks."""
HIDDEN = 0.85
"""Share of the busiest unit's peak that two or three warps a scheduler reach: a guess."""
BARRIER = 200
"""Cycles in which a block that meets at a barrier does nothing; another block on the multiprocessor uses them."""
CONVOLUTION = {"tf32": 260e12, "bf16": 520e12}
PRODUCT = {"tf32": 150e12, "bf16": 250e12}
"""FLOP a second of cuDNN's convolutions and of cuBLAS's products of many small matrices: guesses, half and a quarter of
the peak."""
FORWARD_PASSES, PLAIN_PASSES, OWN_PASSES = 4.7, 8, 3
"""Passes over all activations besides convolutions: BatchNorm (or the folded bias), ReLU and sums of a forward pass; of
a plain backward pass; of ours, whose BatchNorm is folded."""


class Kernel(NamedTuple):
    """A tensor-core tile by its machine code; counts are those of one warp."""

    filters: int  # of a tile
    columns: int
    warps: int
    blocks: int  # on a multiprocessor
    location: int  # bytes of one location in a slice, at most
    instructions: int  # of the inner loop, a step of 32 bytes depth
    products: int  # tensor-core instructions among them
    wavefronts: int  # cycles of shared memory among them
    vector: int  # instructions that bring in 16 bytes
    halo: float = 1.0  # pixels brought in for one location
    fixed: int = 150  # instructions of a slice besides
    row: bool = False  # whether an image may be one row


KERNELS = {
    "before": {
        ("window", "tf32"): Kernel(64, 64, 8, 1, 512, 188, 36, 34, 41, 1.6),
        ("window", "bf16"): Kernel(64, 64, 8, 1, 256, 79, 36, 34, 41, 1.6),
        ("matrix", "tf32"): Kernel(128, 128, 4, 2, 64, 144, 32, 32, 41),
        ("matrix", "bf16"): Kernel(128, 128, 4, 2, 64, 58, 32, 32, 41),
    },
    "after": {
        ("window", "tf32"): Kernel(64, 64, 8, 1, 512, 125, 36, 34, 41, 1.6),
        ("window", "bf16"): Kernel(64, 64, 8, 1, 256, 70, 36, 34, 41, 1.6),
        ("matrix", "tf32"): Kernel(128, 128, 4, 2, 128, 101, 32, 32, 13, row=True),
        ("matrix", "bf16"): Kernel(128, 128, 4, 2, 128, 57, 32, 32, 13, row=True),
        # 16-bit numbers are TF32 numbers there. 600 instructions bring in the pixels of a slice.
        ("patch", "tf32"): Kernel(64, 160, 4, 3, 336, 95, 20, 26, 41, fixed=750),
        ("patch", "bf16"): Kernel(64, 160, 4, 3, 336, 95, 20, 26, 20, fixed=750),
    },
}
GATHER = {"before": (150, 45), "after": (90, 30)}
"""Instructions for one number of A of a 3×3 window and of a single pixel; before, again for every 128 filters."""


def seconds(kernel: Kernel, conv: ConvGeometry, precision: str, size: int) -> float:
    """Return the time of the direct route for a batch; `size` bytes a number in shared memory."""
    depth = 32 // size
    longest = max(depth, kernel.location // size)
    count = ceil(conv.positions / longest)
    length = ceil(ceil(conv.positions / count) / depth) * depth
    steps, per_scheduler = length // depth, kernel.blocks * kernel.warps / SCHEDULERS
    vectors = length * (kernel.filters + kernel.columns * kernel.halo) * size / 16
    if kernel.filters == 64 and kernel.columns == 160:
        vectors = length * kernel.filters * size / 16
    brought = vectors / (kernel.warps * 32) * kernel.vector + kernel.fixed
    cycles = max(
        per_scheduler * steps * kernel.products * MMA_CYCLES,
        per_scheduler * (steps * kernel.instructions + brought),
        kernel.blocks * (kernel.warps * steps * kernel.wavefronts + vectors * 16 / 128),
    )
    cycles = cycles / HIDDEN + BARRIER / kernel.blocks  # of one slice of `blocks` tiles
    taps = conv.kernel[0] * conv.kernel[1]
    if kernel.columns == 160:
        column_tiles = ceil(conv.patch_size / 160)
    else:
        column_tiles = ceil(conv.group_channels / kernel.columns) * ceil(taps / 9)
    filter_tiles = ceil(conv.group_filters / kernel.filters)
    blocks = BATCH * conv.groups * filter_tiles
    blocks *= min(column_tiles, ceil(MULTIPROCESSORS * 4 / blocks))
    tiles = BATCH * conv.groups * filter_tiles * column_tiles
    uneven = ceil(blocks / MULTIPROCESSORS) / (blocks / MULTIPROCESSORS)  # a block more on some multiprocessors
    of_multiprocessor = tiles / (MULTIPROCESSORS * kernel.blocks) * uneven
    from_l2 = (filter_tiles * conv.channels + column_tiles * conv.filters) * conv.positions * BYTES[precision] * BATCH
    return max(of_multiprocessor * count * cycles / CLOCK, moved(conv, precision) / BANDWIDTH, from_l2 / L2)


BYTES = {"tf32": 4, "bf16": 2}


def moved(conv: ConvGeometry, precision: str) -> float:
    """Return the bytes of a batch's input and grad_output."""
    numbers = conv.channels * conv.size[0] * conv.size[1] + conv.filters * conv.positions
    return numbers * BYTES[precision] * BATCH


def direct(conv: ConvGeometry, precision: str, when: str) -> float:
    """Return the seconds of the direct route for a batch."""
    if conv.group_channels < 8:
        if when == "before":  # the float32 tile: 974 instructions a tile of 64 × 64 and 16 locations, 75 % issued
            steps = ceil(conv.patch_size / 64) * ceil(conv.filters / 64) * ceil(conv.positions / 16) * BATCH
            return steps * 974 / 0.75 / MULTIPROCESSORS / CLOCK
        return seconds(KERNELS[when]["patch", precision], conv, precision, 4)
    name = "matrix" if conv.kernel == (1, 1) else "window"
    return seconds(KERNELS[when][name, precision], conv, precision, BYTES[precision])


def gram(conv: ConvGeometry, precision: str, when: str, *, shifted: bool) -> float:
    """Return the seconds of a Gram route for a batch."""
    q, taps, size = conv.positions, conv.kernel[0] * conv.kernel[1], BYTES[precision]
    pixels = conv.span(0, conv.out_size[0]) * conv.span(1, conv.out_size[1]) if shifted else q
    depth = conv.channels if shifted else conv.patch_size
    matrix = 2 * pixels**2 * depth * BATCH / PRODUCT[precision]
    matrix += (pixels**2 * 4 * 2 + 2 * depth * pixels * size * 2) * BATCH / BANDWIDTH
    filter_tiles, column_tiles = ceil(conv.filters / 128), ceil(q / 128)
    issue = MULTIPROCESSORS * SCHEDULERS * CLOCK
    of_number = GATHER[when][0 if shifted and taps > 1 else 1]
    if when == "before":  # 2.2: loads of L2 latency, 8 warps a multiprocessor
        gathered = of_number * q * column_tiles * 128 * filter_tiles * BATCH / 32 / issue * 2.2
        form = 2 * filter_tiles * 128 * column_tiles * 128 * ceil(q / 16) * 16 * BATCH / (0.3 * PEAK["tf32"]) * 0.3
        return matrix + gathered + form
    gathered = 2 * of_number * q**2 * BATCH / 32 / issue  # 2: half of the time waits for loads
    gathered += 2 * q**2 * 4 * BATCH / BANDWIDTH
    slices, kernel = ceil(q / 32), KERNELS[when]["matrix", "tf32"]
    steps = ceil(q / slices / 8)
    of_warp = slices * (steps * kernel.instructions + 16 * 41 + kernel.fixed) + 32 * 41 + 128 * 3 + 300
    cycles = max(slices * steps * kernel.products * MMA_CYCLES, of_warp) * 2 / HIDDEN + BARRIER * (slices + 3)
    blocks = BATCH * filter_tiles
    form = ceil(blocks / (MULTIPROCESSORS * 2)) * column_tiles * cycles / CLOCK
    return matrix + gathered + form


class Pass(NamedTuple):
    """Seconds of a batch, without the host's work."""

    plain: float
    own: float  # all but the operator, without `bias_relu`
    operator: float
    fused: float  # what `bias_relu` saves


def fused_numbers(arch: str) -> int:
    """Return how many numbers of one image `bias_relu` spares: torch reads and writes them for the bias, and for a sum.

    It takes one pass over a convolution's output in place of two, and one more over what is added; torch takes three
    for the sum.
    """
    probe, images, found = random_probe(arch), torch.randn(1, 3, 224, 224), 0

    def count(module: Any, args: tuple[Any, ...], output: Any) -> None:
        nonlocal found
        found += 2 * len(args) * output.numel()

    faster = fold(probe, probe.layers(), images, fuse=True)
    for module in faster.module.modules():
        if type(module).__name__ == "_BiasReLU":
            module.register_forward_hook(count)
    with torch.no_grad():
        faster.features(images)
    return found


def whole_pass(arch: str, precision: str, when: str, *, layers: bool = False) -> Pass:
    """Return the parts of the Fisher pass and the plain step, and print the layers if asked to."""
    forward = backward = weights = activations = operator = 0.0
    rows = []
    for conv, uses in convolutions([arch], 224).items():
        flop = 2 * conv.filters * conv.patch_size * conv.positions * BATCH
        of_bytes = moved(conv, precision) / BANDWIDTH
        once = max(flop / CONVOLUTION[precision], of_bytes)
        forward += uses * once
        backward += uses * once * (conv.channels > 3)  # the images' gradient is not asked for
        weights += uses * max(flop / (0.85 * CONVOLUTION[precision]), of_bytes)
        activations += uses * conv.filters * conv.positions * BATCH * BYTES[precision] / BANDWIDTH
        route = ROUTES_BEFORE.get(describe(conv), "direct") if when == "before" else choose_route(conv, "cuda")
        times = {
            "direct": direct(conv, precision, when),
            "gram": gram(conv, precision, when, shifted=False),
            "shifted_gram": gram(conv, precision, when, shifted=True),
        }
        operator += uses * times[route]
        share = flop / times["direct"] / 1e12
        rows.append((f"{describe(conv)} ×{uses}", *(1e6 * t for t in times.values()), route, share))
    if layers:
        names = ["layer × uses", "direct µs", "gram µs", "shifted µs", "chosen", "direct TFLOP/s"]
        print_table(f"{arch}, {precision}, {when}", names, rows)
    plain = forward + backward + weights + (FORWARD_PASSES + PLAIN_PASSES) * activations
    own = forward + backward + (FORWARD_PASSES + OWN_PASSES) * activations
    return Pass(plain, own, operator, fused_numbers(arch) * BATCH * BYTES[precision] / BANDWIDTH)


ROUTES_BEFORE = {
    "256→256 3×3 at 14": "shifted_gram",
    "128→256 1×1/2 at 28": "direct",
    "256→512 3×3/2 at 14": "shifted_gram",
    "512→512 3×3 at 7": "shifted_gram",
    "256→512 1×1/2 at 14": "gram",
    "1024→512 1×1 at 14": "shifted_gram",
    "512→512 3×3/2 at 14": "shifted_gram",
    "512→2048 1×1 at 7": "shifted_gram",
    "1024→2048 1×1/2 at 14": "gram",
    "2048→512 1×1 at 7": "shifted_gram",
}
"""What the cost function chose before it knew the gather's instructions."""


def distances(tasks: int = 1460, filters: int = 8512) -> dict[str, tuple[float, float]]:
    """Return milliseconds of all d_sym distances before and after: kernel, preparation, copy to the host."""
    issue = MULTIPROCESSORS * SCHEDULERS * CLOCK / 1e3
    side, small = ceil(tasks / 64), ceil(tasks / 32)
    # 131 instructions for 16 pairs of a thread and a filter; float64 sums and loads add half; 276 blocks on 132
    # multiprocessors, one block each, are 3 waves of a possible 2.1.
    before = side * (side + 1) / 2 * 64**2 * filters / 512 * 131 * 1.5 / issue / 0.8 * 3 / 2.1
    # 99, and 192 a slice of 8 filters of a warp for loads and float64 sums; two blocks of 8 warps.
    blocks = small * (small + 1) / 2
    after = blocks * 32**2 * filters / 4096 * (8 * 99 + 192) / issue / 0.8
    after *= ceil(blocks / MULTIPROCESSORS) / (blocks / MULTIPROCESSORS)
    matrix = tasks**2 * 8
    # 40 small launches, 15 passes over the rows, two gathers of the matrix.
    prepared = 40 * 5e-3 + 1e3 * (15 * tasks * filters + 8 * tasks**2) * 8 / BANDWIDTH
    copied = 1e3 * matrix / 5e9  # pageable memory; pinned memory would take a fifth
    return {"kernel": (before, after), "preparation": (prepared, prepared), "copy to the host": (copied, copied)}


NOISE = {"before": 350, "after": 220}
"""Instructions for four numbers of `local_noise`, channels-last."""


def noise(when: str, precision: str) -> float:
    """Return `local_noise` in shares of a copy's speed: bytes, or instructions at 80 % of the issue slots."""
    quads = MULTIPROCESSORS * SCHEDULERS * CLOCK * 32 * 0.8 / NOISE[when]
    return min(1.0, quads * 8 * BYTES[precision] / BANDWIDTH)


def main() -> None:
    """Print what is expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet34", "resnet50"])
    parser.add_argument("--precision", nargs="+", choices=sorted(BYTES), default=["tf32", "bf16"])
    parser.add_argument(
        "--host-ms",
        nargs=3,
        type=float,
        default=[6.0, 2.0, 0.3],
        metavar=("BEFORE", "AFTER", "GRAPHS"),
        help="milliseconds a batch in which the GPU waits for the host, assumed; default 6 2 0.3",
    )
    parser.add_argument("--layers", action="store_true", help="also every layer")
    options = parser.parse_args()
    host_before, host, host_graphs = options.host_ms
    rows = []
    for arch in options.arch:
        for precision in options.precision:
            before, after = (
                Pass(*(1e3 * t for t in whole_pass(arch, precision, when, layers=options.layers)))
                for when in ("before", "after")
            )
            ways = {
                "before": (before, 0.0, host_before),
                "kernels": (after, 0.0, host),
                "with bias_relu": (after, after.fused, host),
                "with CUDA graphs": (after, after.fused, host_graphs),
            }
            for name, (of, fused, waiting) in ways.items():
                ours = of.own - fused + of.operator
                times = of.plain, of.own - fused, of.operator, ours
                rows.append((f"{arch} {precision} {name}", *times, ours / of.plain, (ours + waiting) / of.plain))
    names = ["", "plain step ms", "ours but the operator", "operator", "ours", "ours ÷ plain", "with the host"]
    print_table(f"Not measured on a GPU: a batch of {BATCH} on an H100", names, rows)
    print_table("d_sym of 1,460 tasks, ms", ["", "before", "after"], [(name, *ms) for name, ms in distances().items()])
    shares = [(p, noise("before", p), noise("after", p)) for p in options.precision]
    print_table("local_noise ÷ a copy", ["", "before", "after"], shares)


if __name__ == "__main__":
    main()
