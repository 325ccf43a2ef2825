"""What does a step of the robust Fisher cost, against a plain training step and the authors' second convolution?

    python benchmarks/variational.py [--arch resnet34] [--batch-size 16] [--precision fp32]

Each way is one forward and backward in eval mode: plain with every weight's gradient; ours with noise on activations or
on weights, an epoch of one batch of `variational_epochs` on the folded probe, Adam included; the authors' with frozen
weights, every layer followed by conv(x² + 0.01, σ²) and stored noise, without the optimiser. KL terms included; all
channels-last, the faster layout. And `local_noise` alone on the network's largest map: GB/s read and written, against a
copy.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

import torch
from _measure import check, interleave, parser, print_table, ratio, summary
from _record import write_record
from _rounding import PRECISIONS
from _step import Setup, Step
from torch import Tensor, nn
from torch.nn import functional as F

from task2vec_ext.fisher.variational import VariationalSettings, variational_epochs
from task2vec_ext.kernels import local_noise, reference
from task2vec_ext.probe.probe import frozen

KAPPA = 1e-7


def main() -> None:
    """Check, time, print, write."""
    arguments = parser(__doc__, repeats=7)
    arguments.add_argument("--arch", default="resnet34")
    arguments.add_argument("--batch-size", type=int, help="default: 16 on the CPU, 256 on a GPU")
    arguments.add_argument("--precision", choices=PRECISIONS, help="default: fp32; on a GPU tf32")
    options = arguments.parse_args()
    cuda = options.device.startswith("cuda")
    options.batch_size = options.batch_size or (256 if cuda else 16)
    options.precision = options.precision or ("tf32" if cuda else "fp32")
    result: dict[str, Any] = {
        **{name: getattr(options, name) for name in ("arch", "batch_size", "size", "device", "precision")},
        "error_of_local_noise": check("local_noise", error_to_reference(options.device), 1e-4),
        "local_noise": operator(options.batch_size, options.repeats, options.device),
    }
    write_record("variational", result)
    setup = Setup(options.arch, options.batch_size, options.size, options.device, options.precision, channels_last=True)
    step = setup.build()
    ways = {"plain": step.plain, **{noise: ours(step, noise) for noise in ("activations", "weights")}}
    ways["authors"] = authors(step)
    for way in ways.values():
        way()
    seconds = interleave(ways, options.repeats, options.device)
    pairs = [("activations", "plain"), ("weights", "plain"), ("activations", "authors"), ("authors", "plain")]
    result["seconds"] = {name: summary(values) for name, values in seconds.items()}
    result["ratios"] = {f"{a} ÷ {b}": ratio(seconds[a], seconds[b]) for a, b in pairs}
    path = write_record("variational", result)
    print_table(
        f"{options.arch}, {options.size} px, batch {options.batch_size}, {options.precision}, {options.device}",
        ["a step", "seconds", "÷ plain", "÷ authors'"],
        [
            (name, summary(values)["median"], *(ratio(values, seconds[of])["median"] for of in ("plain", "authors")))
            for name, values in seconds.items()
        ],
    )
    alone = result["local_noise"]
    print(
        f"local_noise {alone['shape']}: {alone['gigabytes_per_second']:.1f} GB/s, copy "
        f"{alone['copy_gigabytes_per_second']:.1f} GB/s ({alone['share']:.0%})"
    )
    print(path)


def error_to_reference(device: str) -> float:
    """Return the largest relative error of `local_noise` and its gradient to the authors' formula, float64."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((2, 16, 20, 20), (24, 16, 3, 3)))
    output = F.conv2d(x, weight, None, 2, 1)
    noise = reference.local_normals(output.shape, 1, 2, 3)
    log_variance = torch.linspace(-3, 0, 24)

    def run(noisy: Callable[..., Tensor], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
        leaf = log_variance.to(device, dtype).requires_grad_()
        out = noisy(output.to(device, dtype), x.to(device, dtype), leaf, weight.shape, 2, 1)
        return out, torch.autograd.grad(out.sin().sum(), leaf)[0]

    ours = run(lambda *layer: local_noise(*layer, seed=1, layer=2, step=3), torch.float32, device)
    exact = run(lambda *layer: reference.local_noise(*layer, noise=noise), torch.float64, "cpu")
    return max(float(((a.cpu() - b).abs().max() / b.abs().max()).detach()) for a, b in zip(ours, exact, strict=True))


def ours(step: Step, noise: Any) -> Callable[[], object]:
    """Return a step of the robust objective: an epoch of one batch."""
    images = len(step.batch.images)
    options = VariationalSettings(noise=noise, objective="authors")
    epochs = variational_epochs(step.faster, step.layers, step.head, repeat([step.batch]), images, options)

    def run() -> None:
        with step.context:
            next(epochs)

    return run


def authors(step: Step) -> Callable[[], None]:
    """Return forward and backward of the authors' formulation: a second convolution and stored noise."""
    modules: list[Any] = [step.probe.module.get_submodule(layer.name) for layer in step.layers]
    log_variance = [(0.05 * m.weight.detach().flatten(1).var(1)).log().requires_grad_() for m in modules]
    prior = [m.weight.detach().square().mean().log().requires_grad_() for m in modules]
    squares = {layer.name: own.detach().clone() for layer, own in zip(step.layers, prior, strict=True)}
    head = step.probe.module.get_submodule(step.probe.head)

    def hook(number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            variance = log_variance[number].exp()[:, None, None, None].expand_as(module.weight)
            layer = (module.stride, module.padding, module.dilation, module.groups)
            noise = F.conv2d(args[0] ** 2 + 0.01, variance, None, *layer).sqrt()
            return output + noise * torch.randn_like(output)

        return add

    def run() -> None:
        handles = [module.register_forward_hook(hook(number)) for number, module in enumerate(modules)]
        try:
            with frozen(step.probe.module):
                head.requires_grad_(True)
                with step.context:
                    logits = step.probe.module(step.batch.images)
                loss = F.cross_entropy(logits.float(), step.batch.labels)
                for own, p, layer in zip(log_variance, prior, step.layers, strict=True):
                    gap, mean = own - p, (squares[layer.name] - p).exp()
                    loss = loss + KAPPA * layer.fan_in * (gap.exp() - 1 - gap + mean).sum()
                torch.autograd.grad(loss, [*log_variance, *prior, *head.parameters()])
        finally:
            for handle in handles:
                handle.remove()

    return run


def operator(batch_size: int, repeats: int, device: str) -> dict[str, Any]:
    """Return the GB/s of `local_noise` on a ResNet's largest map, and of a copy."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    shape = (batch_size, 64, 112, 112)
    output = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
    norm, sigma = torch.rand(batch_size, 1, 112, 112, device=device), torch.rand(64, device=device)
    target = torch.empty_like(output)
    ways = {
        "noise": lambda: torch.ops.task2vec_ext.add_noise(output, norm, sigma, 0, 0, 0),
        "copy": lambda: target.copy_(output),
    }
    for way in ways.values():
        way()
    seconds = {name: summary(values) for name, values in interleave(ways, 5 * repeats, device).items()}
    speed = {name: 2e-9 * output.nbytes / values["median"] for name, values in seconds.items()}
    return {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": seconds,
        "gigabytes_per_second": speed["noise"],
        "copy_gigabytes_per_second": speed["copy"],
        "share": speed["noise"] / speed["copy"],
    }


if __name__ == "__main__":
    main()
