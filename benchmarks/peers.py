"""Per-sample squared gradients of each filter, five ways: ours, torch.func, Opacus, BackPACK, one image at a time.

    pip install ".[bench]"
    python benchmarks/peers.py [--arch resnet34] [--batch-size 16]

Every way gives Σ_n ‖∂ loss_n / ∂w_o‖² for every filter o of every convolution, with cross-entropy as the loss; a way
whose numbers differ is not timed. Each is used as its own documentation recommends:

- vmap: `torch.func.vmap(grad(loss))` over the batch, then squared and summed
- opacus: `GradSampleModule`, whose ``grad_sample`` is squared and summed (its ghost clipping gives the norm over a
  whole layer and nothing per filter)
- backpack: the `SumGradSquared` extension on the network converted by ``extend(…, use_converter=True)``
- loop: ordinary gradients at batch size one

All but the plain step freeze what an embedding does not describe (BatchNorm, head). Packages that are not installed are
left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from _measure import check, interleave, parser, peak_memory, print_table, ratio, say, summary
from _record import write_record
from _step import LIMIT, Setup, Step, relative_error
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

PACKAGES = {"opacus": "opacus", "backpack": "backpack-for-pytorch"}


def main() -> None:
    """Check, time, measure memory, print, write."""
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--arch", default="resnet34")
    arguments.add_argument("--batch-size", type=int, default=16)
    arguments.add_argument("--budget", type=float, default=60, help="seconds after which a way has no further repeats")
    options = arguments.parse_args()
    setup = Setup(options.arch, options.batch_size, options.size, options.device)
    for result in measure(setup, options.repeats, options.budget):
        path = write_record("peers", result)
    report(result)
    print(path)


def measure(setup: Setup, repeats: int, budget: float = 60, *, memory: bool = True) -> Iterator[dict[str, Any]]:
    """Yield memory and error of every way, one after the other; then also the times and their ratios."""
    record: dict[str, Any] = {
        **{name: getattr(setup, name) for name in ("arch", "batch_size", "size", "device")},
        "repeats": repeats,
        "budget_seconds": budget,
    }
    rows: dict[str, dict[str, Any]] = record.setdefault("ways", {})
    ways: dict[str, Callable[[], object]] = {}
    step = setup.build()
    errors = step.errors()
    check("ours", errors["relative_error"], LIMIT)
    expected = _filter_sums(step.fisher("empirical"), step)
    for name in WAYS:
        package = PACKAGES.get(name)
        rows[name] = row = {"version": _version(package) if package else torch.__version__}
        if row["version"] is None:
            row["failed"] = f"{package} is not installed"
            continue
        say(name)
        try:
            if memory:  # first, in a process of its own: a way that needs too much memory ends there
                row["peak_bytes"] = peak_memory(build, setup, name, device=setup.device)
            way = WAYS[name](setup.build())
            result = way()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError) as error:
            row["failed"] = f"needs more memory than there is ({type(error).__name__})"
            continue
        if name == "ours":
            row |= errors  # to the reference; the other ways are compared with ours
        elif isinstance(result, Tensor):
            row["relative_error"] = relative_error(result, expected)
            if not row["relative_error"] <= LIMIT:
                row["failed"] = f"gives other numbers: relative error {row['relative_error']:.1e}"
                continue
        ways[name] = way
        yield record
    say("all in turns")
    seconds = interleave(ways, repeats, setup.device, budget=budget)
    for name, values in seconds.items():
        rows[name]["seconds"] = summary(values)
        rows[name]["time_to_plain"] = ratio(values, seconds["plain"])
        rows[name]["time_to_ours"] = ratio(values, seconds["ours"])
        if memory:
            rows[name]["memory_to_plain"] = rows[name]["peak_bytes"] / rows["plain"]["peak_bytes"]
    yield record


def build(setup: Setup, name: str) -> Callable[[], object]:
    """Return a way's step, warmed up on one small image: what the first call loads is not the step's memory."""
    WAYS[name](replace(setup, batch_size=1, size=64).build())()
    return WAYS[name](setup.build())


def _plain(step: Step) -> Callable[[], None]:
    return step.plain


def _ours(step: Step) -> Callable[[], Tensor]:
    return lambda: _filter_sums(step.fisher("empirical"), step)


def _vmap(step: Step) -> Callable[[], Tensor]:
    module = step.probe.module
    names = [f"{layer.name}.weight" for layer in step.layers]
    fixed = {k: v.detach() for k, v in [*module.named_parameters(), *module.named_buffers()] if k not in names}
    weights = {name: module.get_parameter(name).detach() for name in names}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, {**fixed, **weights}, image[None]), label[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))

    def run() -> Tensor:
        gradients = per_sample(weights, step.batch.images, step.batch.labels)
        return torch.cat([_sum_squares(gradients.pop(name)) for name in names])

    return run


def _opacus(step: Step) -> Callable[[], Tensor]:
    from opacus import GradSampleModule

    _freeze_others(step)
    module, weights = step.probe.module, step.weights
    for layer in step.layers:  # it captures in train mode only; BatchNorm stays in eval mode
        module.get_submodule(layer.name).train()
    wrapped = GradSampleModule(module, loss_reduction="sum")

    def run() -> Tensor:
        wrapped.zero_grad(set_to_none=True)
        F.cross_entropy(wrapped(step.batch.images), step.batch.labels, reduction="sum").backward()
        sums = torch.cat([_sum_squares(weight.grad_sample) for weight in weights])
        wrapped.zero_grad(set_to_none=True)  # also the per-sample gradients, which would accumulate
        return sums

    return run


def _backpack(step: Step) -> Callable[[], Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    _freeze_others(step)
    module = extend(step.probe.module, use_converter=True)
    loss = extend(torch.nn.CrossEntropyLoss(reduction="sum"))
    weights = step.weights  # the conversion keeps the parameters, in another order

    def run() -> Tensor:
        module.zero_grad(set_to_none=True)
        with backpack(SumGradSquared()):
            loss(module(step.batch.images), step.batch.labels).backward()
        sums = torch.cat([weight.sum_grad_squared.flatten(1).sum(1) for weight in weights])
        for weight in weights:
            del weight.sum_grad_squared
        return sums

    return run


def _loop(step: Step) -> Callable[[], Tensor]:
    _freeze_others(step)
    images, labels, weights = step.batch.images, step.batch.labels, step.weights

    def run() -> Tensor:
        sums = torch.zeros(step.layers[-1].stop, device=images.device)
        for image, label in zip(images, labels, strict=True):
            loss = F.cross_entropy(step.probe.module(image[None]), label[None])
            gradients = torch.autograd.grad(loss, weights)
            sums += torch.cat([gradient.flatten(1).square().sum(1) for gradient in gradients])
        return sums

    return run


WAYS: dict[str, Callable[[Step], Callable[[], Any]]] = {
    "plain": _plain,
    "ours": _ours,
    "vmap": _vmap,
    "opacus": _opacus,
    "backpack": _backpack,
    "loop": _loop,
}


def _freeze_others(step: Step) -> None:
    # The warning is about the images, which need no gradient.
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    described = {id(weight) for weight in step.weights}
    for parameter in step.probe.module.parameters():
        parameter.requires_grad_(id(parameter) in described)


def _sum_squares(gradients: Tensor) -> Tensor:
    """Return ``[C_out]`` of ``[N, C_out, …]``."""
    return gradients.flatten(2).square_().sum((0, 2))


def _filter_sums(fisher: Tensor, step: Step) -> Tensor:
    """Return Σ_n ‖g_n[o,·]‖², ``[K]``: `per_sample_fisher` divides by the weights of a filter."""
    sizes = torch.tensor([layer.stop - layer.start for layer in step.layers])
    fan_in = torch.tensor([layer.fan_in for layer in step.layers]).repeat_interleave(sizes)
    return (fisher.sum(0) * fan_in.to(fisher)).float()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def report(row: dict[str, Any]) -> None:
    """Print the figures."""
    lines = []
    for name, way in row["ways"].items():
        if "failed" in way:
            lines.append((name, way["failed"], *[None] * 6))
            continue
        lines.append(
            (
                name,
                way["version"],
                way["seconds"]["median"],
                way["seconds"]["n"],
                way["time_to_plain"]["median"],
                way["time_to_ours"]["median"],
                way.get("memory_to_plain"),
                way.get("relative_error"),
            )
        )
    print_table(
        f"{row['arch']}, {row['size']} px, batch {row['batch_size']}, {row['device']}",
        ["", "version", "seconds", "runs", "time ÷ plain", "time ÷ ours", "memory ÷ plain", "relative error"],
        lines,
    )


if __name__ == "__main__":
    main()
