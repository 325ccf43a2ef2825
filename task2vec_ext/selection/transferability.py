"""Transferability scores: how well an expert's outputs on a task's images go with its labels; higher is better.

All take an expert's outputs on N images of the task, ``[N, …]``, and the task's labels, ``[N]`` int64, so that choosing
among E experts costs E forward passes over the images. They raise a ValueError if shapes do not fit, an output is not
finite, or there are no images.

================ =========================== ======================================= =================================
score            of                          besides the forward pass                source
================ =========================== ======================================= =================================
`leep`           source classes' softmax     N·C_s                                   Nguyen et al., 2002.12462
`nce`            source classes predicted    N                                       Tran et al., 1908.08142
`logme`          features                    N·D·min(N, D) + C·min(N, D) a step      You et al., 2102.11005, 2110.10545
`h_score`        features                    N·D² + D³                               Bao et al., ICIP 2019; 2110.06893
`knn_accuracy`   features                    N²·D                                    Sorkhei et al., 2503.18528
`probe_accuracy` features                    a linear classifier for each fold       this project
================ =========================== ======================================= =================================

C classes of the task, C_s of the expert. In float64 throughout; same input, same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..fisher.head import fit_head

_MOST_STEPS = 100
"""Of LogME's fixed point, which takes about ten."""
_MOST_PRECISION = 1e12
"""Bound of α and β, which have no finite optimum where features give labels without error."""


def leep(probabilities: Tensor, labels: Tensor) -> float:
    """Return LEEP, the log expected empirical prediction: mean of ``log Σ_z p(y_n|z)·θ_n[z]``, nats, at most 0.

    θ ``[N, C_s]`` is the expert's softmax over its own classes z, ``p(y|z) = Σ_n 1[y_n = y]·θ_n[z] / Σ_n θ_n[z]``.
    """
    probabilities, labels = _checked("leep", probabilities, labels)
    joint = F.one_hot(labels).double().T @ probabilities  # [C, C_s]
    given = joint / joint.sum(0).clamp(min=torch.finfo(torch.float64).tiny)  # a class never predicted weighs nothing
    return float((given[labels] * probabilities).sum(1).log().mean())


def nce(source_labels: Tensor, labels: Tensor) -> float:
    """Return NCE, the negative conditional entropy ``−H(Y|Z)`` of the labels given the expert's own, nats, at most 0.

    Z, ``[N]`` int64, is the expert's most probable class for each image.
    """
    one_hot, labels = _checked("nce", F.one_hot(source_labels), labels)
    joint = F.one_hot(labels).double().T @ one_hot / len(labels)  # [C, C_s]
    return float((torch.xlogy(joint, joint) - torch.xlogy(joint, joint.sum(0))).sum())


def logme(features: Tensor, labels: Tensor) -> float:
    """Return LogME: the log evidence of Bayesian linear regression on one-hot labels, at its best α and β.

    ``y_c ~ N(z·w, 1/β)``, ``w ~ N(0, 1/α)``; α and β maximise each class's evidence, by the fixed point of 2110.10545.
    In nats an image, mean over classes. A class whose labels the features give without any error has infinite evidence;
    β stops at 1e12 there.
    """
    z, labels = _checked("logme", features, labels)
    y = F.one_hot(labels).double()  # [N, C]
    N = len(z)
    u, singular, _ = torch.linalg.svd(z, full_matrices=False)
    sigma = singular.square()[:, None]  # [R, 1]
    inside = (u.T @ y).square()  # [R, C] what of y each direction holds
    outside = (y.square().sum(0) - inside.sum(0)).clamp(min=0)  # [C]
    alpha = beta = torch.ones_like(outside)
    for _ in range(_MOST_STEPS):
        precision = alpha + beta * sigma  # [R, C]
        freedom = (beta * sigma / precision).sum(0)
        squares = (beta * beta * sigma / precision.square() * inside).sum(0)  # ‖m‖²
        residual = ((alpha / precision).square() * inside).sum(0) + outside
        before = alpha / beta
        # Features that are all zero leave α open.
        alpha = torch.where(freedom > 0, freedom / squares, alpha).clamp(max=_MOST_PRECISION)
        beta = ((N - freedom) / residual).clamp(max=_MOST_PRECISION)
        if ((alpha / beta - before).abs() <= 1e-6 * before).all():
            break
    precision = alpha + beta * sigma
    squares = (beta * beta * sigma / precision.square() * inside).sum(0)
    residual = ((alpha / precision).square() * inside).sum(0) + outside
    evidence = 0.5 * (
        N * (beta / (2 * torch.pi)).log()
        + len(sigma) * alpha.log()  # the D − R directions without features cancel with those of log det
        - precision.log().sum(0)
        - beta * residual
        - alpha * squares
    )
    return float(evidence.mean() / N)


def h_score(features: Tensor, labels: Tensor, *, shrinkage: float | None = None) -> float:
    """Return the H-score ``tr(Σ⁻¹·(1 − s)·Σ_between)``, shrunk: ``Σ = (1 − s)·cov(z) + s·tr(cov(z))/D·I``.

    In [0, min(C − 1, D)]. Σ_between is the covariance of the class means. s in [0, 1] is the shrinkage; None: that of
    Ledoit and Wolf, from the features. s = 0 is the original score, mostly noise unless N is many times D.

    Source:
        Bao et al., ICIP 2019; shrunk: Ibrahim et al., 2110.06893; s: Ledoit and Wolf, J. Multivar. Anal. 88 (2004).
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"h_score: expected shrinkage from 0 to 1, got {shrinkage}; None estimates it.")
    z, labels = _checked("h_score", features, labels)
    z = z - z.mean(0)
    N, D = z.shape
    covariance = z.T @ z / N
    scale = covariance.trace() / D
    if scale == 0:
        return 0.0  # constant features
    if shrinkage is None:
        spread = covariance.square().sum() - D * scale.square()  # ‖cov − scale·I‖²
        noise = (z.square().sum(1).square().sum() / N - covariance.square().sum()) / N
        shrinkage = float((noise / spread).clamp(0, 1)) if spread > 0 else 1.0
    one_hot = F.one_hot(labels).double()
    counts = one_hot.sum(0)
    means = one_hot.T @ z / counts.clamp(min=1)[:, None]  # [C, D]
    between = means * (counts / N).sqrt()[:, None]
    shrunk = (1 - shrinkage) * covariance + shrinkage * scale * torch.eye(D, dtype=z.dtype, device=z.device)
    inverse = torch.linalg.pinv(shrunk, hermitian=True)
    return float((1 - shrinkage) * ((between @ inverse) * between).sum())


def knn_accuracy(features: Tensor, labels: Tensor, *, k: int = 5) -> float:
    """Return the leave-one-out accuracy of k nearest neighbours (Euclidean); of equal votes the nearer class wins."""
    z, labels = _checked("knn_accuracy", features, labels, least=2)
    if k < 1:
        raise ValueError(f"knn_accuracy: expected k >= 1, got {k}.")
    distances = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    nearest = distances.sort(dim=1, stable=True).indices[:, : min(k, len(z) - 1)]
    # Votes weigh slightly less with rank: enough to break ties, too little to outweigh a vote.
    weights = 1 - torch.arange(nearest.shape[1], dtype=torch.float64) / (2 * nearest.shape[1] ** 2)
    votes = (F.one_hot(labels)[nearest] * weights[:, None]).sum(1)  # [N, C]
    return float((votes.argmax(1) == labels).double().mean())


def probe_accuracy(features: Tensor, labels: Tensor, *, folds: int = 3, seed: int = 0) -> float:
    """Return the cross-validated accuracy of a linear classifier (`fit_head`, convex), in folds stratified by class."""
    z, labels = _checked("probe_accuracy", features, labels, least=max(folds, 2))
    if folds < 2:
        raise ValueError(f"probe_accuracy: expected 2 folds or more, got {folds}.")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = shuffled[labels[shuffled].sort(stable=True).indices]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(order)) % folds
    right = 0
    for number in range(folds):
        held_out = fold == number
        head = fit_head(z[~held_out], labels[~held_out], int(labels.max()) + 1)
        right += int((head.logits(z[held_out]).argmax(1) == labels[held_out]).sum())
    return right / len(labels)


def _checked(who: str, outputs: Tensor, labels: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Return outputs ``[N, …]`` in float64 and labels, once they fit together."""
    if outputs.dim() != 2 or labels.dim() != 1 or len(outputs) != len(labels) or len(labels) < least:
        raise ValueError(
            f"{who}: expected an expert's outputs [N, …] and labels [N] of N >= {least} images, got "
            f"{list(outputs.shape)} and {list(labels.shape)}."
        )
    outputs = outputs.detach().cpu().double()
    if not torch.isfinite(outputs).all():
        raise ValueError(f"{who}: expected finite outputs, got NaN or infinity; check the expert's weights.")
    return outputs, labels.detach().cpu().long()
