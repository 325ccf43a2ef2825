"""Every operator and estimator in plain, obviously right PyTorch: what the tests and benchmarks compare against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


def filter_grad_sq(
    input: Tensor,
    grad_output: Tensor,
    weight_shape: Sequence[int],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """Return ``[N, C_out]`` squared per-sample filter gradients, by unfolding the input and one einsum.

    Arguments as in Conv2d. Memory: the unfolded input and every sample's weight gradient.
    """
    n, filters = input.shape[0], weight_shape[0]
    unfolded = F.unfold(input, tuple(weight_shape[2:]), dilation, padding, stride)  # [N, C_in·kH·kW, Q]
    patches = unfolded.reshape(n, groups, -1, unfolded.shape[-1])  # [N, G, P, Q]
    delta = grad_output.reshape(n, groups, filters // groups, -1)  # [N, G, C_out/G, Q]
    gradient = torch.einsum("ngoq,ngpq->ngop", delta, patches)
    return gradient.square().sum(-1).reshape(n, filters)


def per_sample_grad_sq(
    module: nn.Module, images: Tensor, cotangent: Tensor, weights: Sequence[nn.Parameter]
) -> list[Tensor]:
    """Return ``‖∂(cotangent_n · module(image_n))/∂w_o‖²``, ``[N, C_out]`` a weight, by autograd at batch size one.

    The module is in eval mode and maps ``[1, 3, H, W]`` to ``[1, D]``; `cotangent` is ``[N, D]``.
    """
    rows = []
    for image, v in zip(images, cotangent, strict=True):
        gradients = torch.autograd.grad(module(image[None]), list(weights), v[None])
        rows.append([gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def softmax_covariance(logits: Tensor) -> Tensor:
    """Return ``diag(p) − ppᵀ``, ``[B, C, C]``: the covariance every cotangent of a softmax loss must have."""
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def authors_monte_carlo(
    module: nn.Module, images: Tensor, labels: Tensor, weights: Sequence[nn.Parameter], batch_size: int = 64
) -> list[Tensor]:
    """Return the authors' Monte-Carlo Fisher, ``[C_out]`` a weight: squared gradients of the loss's **batch mean**.

    Their released code does this with batches of 64, which estimates the Fisher divided by 64, from one squared
    gradient a batch. At batch size one it is the per-sample estimator ``"sampled"``. `labels` ``[N]`` are sampled from
    the model, which is in eval mode (theirs is in train mode by mistake).
    """
    totals = [weight.new_zeros(len(weight)) for weight in weights]
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    for x, y in batches:
        gradients = torch.autograd.grad(F.cross_entropy(module(x), y), list(weights))
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient.reshape(len(gradient), -1).square().mean(1)
    return [total / len(batches) for total in totals]


def two_layer_fisher(first: Tensor, second: Tensor, inputs: Tensor) -> Tensor:
    """Return the exact Fisher of ``p = σ(w·σ(Ux))`` in U, ``[Z·X, Z·X]``, by the paper (§2, two-layer example).

    ``F = E_x[p(1 − p) · S ⊗ xxᵀ]`` with ``S = wwᵀ ⊙ zzᵀ ⊙ (1−z)(1−z)ᵀ``, row-major ``vec(U)``; U ``[Z, X]`` is
    `first`, w ``[Z]`` is `second`, x are the rows of `inputs` ``[N, X]``.
    """
    z = torch.sigmoid(inputs @ first.T)  # [N, Z]
    p = torch.sigmoid(z @ second)  # [N]
    slope = second * z * (1 - z)  # [N, Z]
    s = torch.einsum("ni,nj,n->nij", slope, slope, p * (1 - p))
    n, size = inputs.shape[0], first.numel()
    return torch.einsum("nij,nk,nl->ikjl", s, inputs, inputs).reshape(size, size) / n


def philox(seed: int, counter: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return Philox4x32-10 of four arrays of counter words (least significant first), ``[…, 4]`` uint64 below 2³².

    Source:
        Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        left, right = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = right >> np.uint64(32) ^ c1 ^ np.uint64(k0), right & mask
        c2, c3 = left >> np.uint64(32) ^ c3 ^ np.uint64(k1), left & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1)


def philox_normal(seed: int, stream: int, step: int, block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the four standard normal numbers of every block, ``[…, 4]`` float64: Box–Muller of two words each."""
    block = block.astype(np.uint64)
    words = philox(seed, (block & np.uint64(0xFFFFFFFF), block >> np.uint64(32), step, stream)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((words[..., ::2] + 0.5) / 2**32))
    angle = 2 * np.pi * words[..., 1::2] / 2**32
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(*block.shape, 4)


def local_normals(shape: Sequence[int], seed: int, layer: int, step: int) -> Tensor:
    """Return the ε that `local_noise` adds to an output of `shape` ``[N, C, H, W]``, float64."""
    n, channels, height, width = shape
    blocks = -(-channels // 4)
    normal = philox_normal(seed, layer, step, np.arange(n * height * width * blocks))
    rows = torch.from_numpy(normal).reshape(n, height, width, 4 * blocks)[..., :channels]
    return rows.permute(0, 3, 1, 2)


def weight_normals(sizes: Sequence[int], seed: int, step: int) -> Tensor:
    """Return the ε that `weight_noise` adds to filters of so many weights, end to end, float64."""
    rows = [
        philox_normal(seed, 2**32 - 1, step, filter * 2**32 + np.arange(-(-size // 4))).reshape(-1)[:size]
        for filter, size in enumerate(sizes)
    ]
    return torch.from_numpy(np.concatenate(rows))


def local_noise(
    output: Tensor,
    input: Tensor,
    log_variance: Tensor,
    weight_shape: Sequence[int],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    noise: Tensor,
    epsilon: float = 0.01,
) -> Tensor:
    """Return `output` plus √conv2d(x² + epsilon, σ²)·ε: the authors' second convolution, written plainly.

    σ² of each filter and x, the input, are as `kernels.local_noise` takes them; `noise` is ε, like `output`.
    """
    variance = log_variance.exp()[:, None, None, None].expand(*weight_shape)
    return output + F.conv2d(input**2 + epsilon, variance, None, stride, padding, dilation, groups).sqrt() * noise
