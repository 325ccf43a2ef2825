"""Small probes and tasks that the tests of the pipeline share."""

import torch
from torch import Tensor, nn

from task2vec_ext import Embedding, EmbedSettings, HeadSettings, Probe, fisher_embed
from task2vec_ext.experts.recipe import Recipe
from task2vec_ext.probe.tiny import TinyResNet


def small_resnet(seed: int = 0, widths: tuple[int, ...] = (4, 6, 8, 10)) -> TinyResNet:
    """A residual network of few channels with BatchNorm statistics that are not the identity, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TinyResNet(num_classes=3, widths=widths)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


def small_probe(module: nn.Module | None = None, head: str = "fc") -> Probe:
    """A probe that takes preprocessed tensors."""
    return Probe(module or small_resnet(), head, "small", "random", None)


class Blobs(torch.utils.data.Dataset):
    """Images of `classes` noisy colours, ``[3, side, side]`` float, already preprocessed."""

    def __init__(self, n: int = 24, classes: int = 3, side: int = 12, noise: float = 1.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(n) % classes
        colours = torch.randn(classes, 3, 1, 1, generator=generator)
        self.images: Tensor = colours[self.targets] + noise * torch.randn(n, 3, side, side, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


def state_of(module: nn.Module) -> dict:
    """Everything about a module that a pass must leave as it was."""
    return {
        "values": {name: value.clone() for name, value in module.state_dict().items()},
        "grads": {name: p.grad for name, p in module.named_parameters()},
        "flags": {name: p.requires_grad for name, p in module.named_parameters()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in module.named_modules()
        },
        "training": {name: m.training for name, m in module.named_modules()},
        "attributes": {name: sorted(vars(m)) for name, m in module.named_modules()},
    }


def assert_untouched(module: nn.Module, before: dict) -> None:
    after = state_of(module)
    for name, value in before.pop("values").items():
        assert torch.equal(value, after["values"][name]), name
    after.pop("values")
    assert before == after


# For training: on CPUs without AVX-512, the backward pass of a strided, channels-last 1×1 convolution of 4 to 6
# channels writes past its buffer (torch 2.14's oneDNN, one thread). Multiples of 8 are safe.
TRAINABLE = (8, 8, 8, 16)
QUICK = Recipe("lbfgs", 4, 1e-2, "cosine", batch_size=8)


def embed(task=None, probe=None, *, layers=None, include_batchnorm=False, head=None, **options) -> Embedding:
    """The embedding of a task, by default of `Blobs` and a small probe."""
    settings = EmbedSettings(layers=layers, include_batchnorm=include_batchnorm, head=HeadSettings(**(head or {})))
    return fisher_embed(task or Blobs(), probe or small_probe(), settings=settings, progress=False, **options)
