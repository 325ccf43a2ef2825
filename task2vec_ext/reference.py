"""Every operator and estimator in plain, obviously right PyTorch: what the tests and benchmarks compare against."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    Args:
        input: ``[N, C_in, H, W]``.
        grad_output: ``[N, C_out, H_out, W_out]``.
        weight_shape: ``(C_out, C_in / groups, kH, kW)``.
        stride: as in Conv2d.
        padding: as in Conv2d.
        dilation: as in Conv2d.
        groups: as in Conv2d.

    Returns:
        ``[N, C_out]`` in the dtype of `input`. Memory: the unfolded input and every sample's weight gradient.
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
    """Return each weight's squared gradient per sample and filter, by autograd at batch size one.

    Args:
        module: maps ``[1, 3, H, W]`` to ``[1, D]``; in eval mode.
        images: ``[N, 3, H, W]``.
        cotangent: ``[N, D]``, gradient of the summed loss at the module's output.
        weights: parameters of `module`, filters along the first axis.

    Returns:
        For each weight ``[N, C_out]``: ``‖∂(cotangent_n · module(image_n))/∂w_o‖²``.
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
    """Return the authors' Monte-Carlo Fisher per filter: squared gradients of the **batch mean** of the loss.

    Their released code does this with batches of 64, which estimates the Fisher divided by 64, from one squared
    gradient a batch. At batch size one it is the per-sample estimator ``"sampled"``.

    Args:
        module: maps ``[B, 3, H, W]`` to logits ``[B, C]``; in eval mode (theirs is in train mode by mistake).
        images: ``[N, 3, H, W]``.
        labels: ``[N]`` int64, sampled from the model.
        weights: parameters of `module`, filters along the first axis.
        batch_size: pictures in one mean.

    Returns:
        For each weight ``[C_out]``.
    """
    totals = [weight.new_zeros(len(weight)) for weight in weights]
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    for x, y in batches:
        gradients = torch.autograd.grad(F.cross_entropy(module(x), y), list(weights))
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient.reshape(len(gradient), -1).square().mean(1)
    return [total / len(batches) for total in totals]


def two_layer_fisher(first: Tensor, second: Tensor, inputs: Tensor) -> Tensor:
    """Return the exact Fisher of ``p = σ(w·σ(Ux))`` in U, the closed form of the paper (§2, two-layer example).

    ``F = E_x[p(1 − p) · S ⊗ xxᵀ]`` with ``S = wwᵀ ⊙ zzᵀ ⊙ (1−z)(1−z)ᵀ``, row-major ``vec(U)``.

    Args:
        first: U, ``[Z, X]``.
        second: w, ``[Z]``.
        inputs: x, ``[N, X]``.

    Returns:
        ``[Z·X, Z·X]``.
    """
    z = torch.sigmoid(inputs @ first.T)  # [N, Z]
    p = torch.sigmoid(z @ second)  # [N]
    slope = second * z * (1 - z)  # [N, Z]
    s = torch.einsum("ni,nj,n->nij", slope, slope, p * (1 - p))
    n, size = inputs.shape[0], first.numel()
    return torch.einsum("nij,nk,nl->ikjl", s, inputs, inputs).reshape(size, size) / n
