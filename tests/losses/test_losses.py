"""Losses: their Fisher against its definition, their cotangents, the fit of their heads, what they refuse."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from cases import assert_near
from small import Blobs, small_probe, small_resnet
from torch import distributions as D

from task2vec_ext.data import Batch
from task2vec_ext.fisher.head import Head, fit_head
from task2vec_ext.fisher.per_sample import cotangents, per_sample_fisher
from task2vec_ext.losses import (
    CrossEntropy,
    Dense,
    MultiLabel,
    PseudoLabels,
    Regression,
    as_loss,
    loss_of,
    per_image,
    signs_per_image,
)

C = 3
LOSSES = {
    "cross_entropy": CrossEntropy(),
    "multilabel": MultiLabel(),
    "regression": Regression(noise=(1.0, 0.5, 2.0)),
    "dense": Dense(),
}
MAP = torch.tensor([[[0, 2], [-1, 1]], [[1, 1], [0, -1]]])  # labels of the cells of two images
TARGETS = {
    "cross_entropy": torch.tensor([2, 0]),
    "multilabel": torch.tensor([[1.0, 0.0, torch.nan], [0.0, 0.0, 1.0]]),
    "regression": torch.tensor([[0.3, -1.0, 2.0], [0.0, 1.0, 0.5]], dtype=torch.float64),
    "dense": MAP,
}
case = pytest.mark.parametrize("name", LOSSES)


def setting(name):
    """A probe, a head and two images, whose feature map has 2 × 2 cells, in float64."""
    loss = LOSSES[name]
    probe = loss.tap(small_probe(small_resnet().double()))
    weight = torch.randn(C, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.3
    head = Head(weight, torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64), 0.0, 0.0, loss)
    batch = Batch(torch.arange(2), Blobs(2).images.double(), TARGETS[name])
    return probe, head, batch


def outcomes(name, logits, target):
    """What one image's targets may be: (weight, log p(y|x)), such that the gradient's second moment is exact."""
    if name == "cross_entropy":
        p = D.Categorical(logits=logits)
        return [(p.probs[c].detach(), p.log_prob(torch.tensor(c))) for c in range(C)]
    if name == "multilabel":
        p = D.Bernoulli(logits=logits)
        every = [p.log_prob(torch.tensor(y).double()).sum() for y in itertools.product((0, 1), repeat=C)]
        return [(log_p.detach().exp(), log_p) for log_p in every]
    if name == "regression":  # the gradient is linear in y: corners at ± σ have its second moment
        sigma = torch.tensor(LOSSES[name].noise, dtype=torch.float64)
        corners = [torch.tensor(s).double() * sigma for s in itertools.product((-1, 1), repeat=C)]
        return [(1 / len(corners), D.Normal(logits, sigma).log_prob(logits.detach() + s).sum()) for s in corners]
    p = D.Categorical(logits=logits[target >= 0])  # [cells, C]
    every = [p.log_prob(torch.tensor(y)).sum() for y in itertools.product(range(C), repeat=int((target >= 0).sum()))]
    return [(log_p.detach().exp(), log_p) for log_p in every]


def fisher_by_definition(name, probe, head, batch, layers):
    """E_y[(∂ log p(y|x) / ∂w)²] by autograd through the whole network, image by image, outcome by outcome."""
    weights = [probe.module.get_submodule(layer.name).weight.requires_grad_() for layer in layers]
    rows = []
    for image, target in zip(batch.images, batch.labels, strict=True):
        total = 0
        logits = head.logits(probe.features(image[None]))[0]
        for probability, log_p in outcomes(name, logits, target):
            gradients = torch.autograd.grad(log_p, weights, retain_graph=True)
            total = total + probability * torch.cat([g.flatten(1).square().mean(1) for g in gradients])
        rows.append(total)
    return torch.stack(rows)


@case
def test_exact_is_the_fisher_by_its_definition(name):
    probe, head, batch = setting(name)
    layers = probe.layers()
    actual = per_sample_fisher(probe, layers, head, batch, "exact")
    expected = fisher_by_definition(name, probe, head, batch, layers)
    for layer in layers:  # each on its own scale
        rows = slice(layer.start, layer.stop)
        assert_near(actual[:, rows], expected[:, rows], 1e-10)


@case
@pytest.mark.parametrize("estimator", ["signed", "sampled", "empirical"])
def test_one_pass_estimators_equal_autograd_at_batch_size_one(name, estimator):
    probe, head, batch = setting(name)
    layers = probe.layers()
    actual = per_sample_fisher(probe, layers, head, batch, estimator, seed=5)
    weights = [probe.module.get_submodule(layer.name).weight.requires_grad_() for layer in layers]
    for n, image in enumerate(batch.images):
        logits = head.logits(probe.features(image[None]))
        one = batch.labels[n : n + 1], batch.index[n : n + 1]
        (v,) = cotangents(estimator, logits.detach(), *one, 5, head.loss)
        gradients = torch.autograd.grad((v * logits).sum(), weights)
        assert_near(actual[n], torch.cat([g.flatten(1).square().mean(1) for g in gradients]), 1e-10)


@case
def test_empirical_is_the_gradient_of_the_targets_likelihood(name):
    _, head, batch = setting(name)
    shape = (2, 2, 2, C) if name == "dense" else (2, C)
    logits = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y, loss = batch.labels, head.loss
    log_p = {
        "cross_entropy": lambda: D.Categorical(logits=logits).log_prob(y),
        "multilabel": lambda: D.Bernoulli(logits=logits).log_prob(y.nan_to_num(0.0).double())[~y.isnan()],
        "regression": lambda: D.Normal(logits, torch.tensor(loss.noise, dtype=torch.float64)).log_prob(y),
        "dense": lambda: D.Categorical(logits=logits).log_prob(y.clamp(min=0))[y >= 0],
    }[name]()
    (expected,) = torch.autograd.grad(-log_p.sum(), logits)
    (v,) = cotangents("empirical", logits.detach(), y, batch.index, 0, loss)
    assert_near(v, expected, 1e-14)
    rows = loss.rows(logits.detach(), y)
    assert loss.nll(*rows) == pytest.approx(-float(log_p.detach().sum()) / len(rows[1]), rel=1e-12)


@case
def test_random_signs_have_the_second_moment_of_exact(name):
    """All signs, not some of them: equality."""
    _, head, batch = setting(name)
    shape = (2, 2, 2, C) if name == "dense" else (2, C)
    logits = 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cell = logits[:, :1, :1] if name == "dense" else logits  # one cell, or there are 2^12 signs
    targets = batch.labels[:, :1, :1] if name == "dense" else batch.labels
    signs = [torch.tensor(s).double().reshape(cell.shape[1:]) for s in itertools.product((-1, 1), repeat=C)]
    v = torch.stack([head.loss.root(cell, targets, s).flatten(1) for s in signs], 1)
    columns = torch.stack([v.flatten(1) for v in cotangents("exact", cell, targets, batch.index, 0, head.loss)], 1)
    assert_near(v.transpose(1, 2) @ v / len(signs), columns.transpose(1, 2) @ columns, 1e-14)
    assert (columns != 0).any()


@case
@pytest.mark.parametrize("estimator", ["signed", "sampled"])
def test_random_cotangents_have_the_covariance_of_exact_within_5_standard_errors(name, estimator):
    draws, loss = 10_000, LOSSES[name]
    one = torch.tensor([1.5, 0.5, -1.0], dtype=torch.float64)
    logits = torch.stack([one, -one])[None, None] if name == "dense" else one[None]  # two cells: they are independent
    targets = torch.tensor([[[0, 1]]]) if name == "dense" else TARGETS[name][:1]
    columns = torch.cat([v.flatten(1) for v in cotangents("exact", logits, targets, torch.arange(1), 0, loss)])
    many = [part.expand(draws, *part.shape[1:]) for part in (logits, targets)]
    (v,) = cotangents(estimator, *many, torch.arange(draws), 0, loss)
    products = v.flatten(1)[:, :, None] * v.flatten(1)[:, None, :]
    error = (products.mean(0) - columns.T @ columns).abs()
    assert (error <= 5 * products.std(0) / draws**0.5 + 1e-12).all()


def test_unlabelled_cells_are_no_part_of_the_fisher_and_unknown_labels_are():
    cells, labels = torch.zeros(1, 1, 2, C), torch.zeros(1, C)
    for estimator in ("signed", "sampled", "empirical"):
        (v,) = cotangents(estimator, cells, torch.tensor([[[1, -1]]]), torch.arange(1), 0, Dense())
        assert v[0, 0, 0].any()
        assert not v[0, 0, 1].any()
    (v,) = cotangents("signed", labels, torch.full((1, C), torch.nan), torch.arange(1), 0, MultiLabel())
    assert (v != 0).all()


# ---- heads


def features(n=80, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, generator=generator) * torch.logspace(1, -1, size) + 2, generator


def multi_hot(z, generator, labels=3):
    noise = torch.randn(len(z), labels, generator=generator)
    return ((z[:, :labels] - 2) + noise > 0.5).float()


def optimality(head, z, loss, l2):
    """The largest derivative of Σ loss + l2/2·‖W‖², for a loss given as a function of logits."""
    weight, bias = (t.clone().requires_grad_() for t in (head.weight, head.bias))
    value = loss(z.double() @ weight.T + bias) + l2 / 2 * weight.square().sum()
    return max(float(g.abs().max()) for g in torch.autograd.grad(value, [weight, bias]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2], ids=["plain", "smoothed"])
def test_the_cross_entropy_head_minimises_the_weighted_and_smoothed_loss(smoothing):
    z, generator = features()
    y = torch.randint(0, 3, (len(z),), generator=generator)
    weights = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
    loss = CrossEntropy(class_weights=tuple(weights.tolist()), label_smoothing=smoothing)
    head = fit_head(z, y, 3, loss=loss, l2=1e-2)

    def theirs(logits):  # torch lets weights act on the smoothed part too, class by class: another convention
        goal = torch.nn.functional.one_hot(y, 3) * (1 - smoothing) + smoothing / 3
        terms = torch.nn.functional.cross_entropy(logits, goal, reduction="none")
        return (weights[y] * terms).sum() / weights[y].sum()

    assert optimality(head, z, theirs, 1e-2) < 1e-7
    assert head.nll == pytest.approx(float(torch.nn.functional.cross_entropy(head.logits(z), y)))


@pytest.mark.parametrize("balanced", [False, True], ids=["plain", "balanced"])
def test_each_multilabel_head_is_that_of_its_known_images_alone(balanced):
    linear_model = pytest.importorskip("sklearn.linear_model")
    z, generator = features()
    y = multi_hot(z, generator)
    y[::3, 1] = torch.nan
    head = fit_head(z, y, 3, loss=MultiLabel(), l2=1e-2, class_balanced=balanced)
    for c in range(3):
        known = ~y[:, c].isnan()
        model = linear_model.LogisticRegression(
            C=1 / (1e-2 * int(known.sum())), tol=1e-10, max_iter=10_000, class_weight="balanced" if balanced else None
        )
        model.fit(z[known].double().numpy(), y[known, c].numpy())
        assert (head.weight[c] - torch.from_numpy(model.coef_[0])).abs().max() < 1e-4


def test_multilabel_smoothing_and_weights_act_on_the_fit():
    z, generator = features()
    y = multi_hot(z, generator)
    plain, soft = (fit_head(z, y, 3, loss=MultiLabel(label_smoothing=s)) for s in (0.0, 0.3))
    assert soft.weight.norm() < 0.7 * plain.weight.norm()
    heavy = fit_head(z, y, 3, loss=MultiLabel(class_weights=(100.0, 1.0, 1.0)))
    assert torch.allclose(heavy.weight[1:], plain.weight[1:], atol=1e-5)
    assert heavy.weight[0].norm() > plain.weight[0].norm()  # its loss outweighs the penalty


def test_mean_average_precision_agrees_with_scikit_learn_with_ties_and_missing_labels():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(50, 4, generator=generator) < 0.3).float()
    scores = (torch.randn(50, 4, generator=generator) + y).mul(2).round() / 2  # many ties
    y[:7, 2] = torch.nan
    columns = [(y[:, c], scores[:, c], ~y[:, c].isnan()) for c in range(4)]
    theirs = np.mean([metrics.average_precision_score(t[k].numpy(), s[k].numpy()) for t, s, k in columns])
    assert MultiLabel().score(scores, y) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("size", [6, 120], ids=["tall", "wide"])
def test_regression_is_ridge_on_standardised_targets(size):
    linear_model = pytest.importorskip("sklearn.linear_model")
    z, generator = features(size=size)
    raw = z[:, :2].double() * torch.tensor([3.0, -100.0]) + 50 * torch.randn(len(z), 2, generator=generator)
    y, outputs = Regression().prepare(raw, z, 0)
    head = fit_head(z, y, outputs, loss=Regression(), l2=1e-2)
    ridge = linear_model.Ridge(alpha=1e-2 * len(z), solver="svd").fit(z.double().numpy(), y.numpy())
    assert_near(head.weight, torch.from_numpy(ridge.coef_), 1e-7)
    assert head.score == pytest.approx(ridge.score(z.double().numpy(), y.numpy()))
    assert head.loss.noise == (1.0, 1.0)


def test_regression_does_not_depend_on_the_targets_units_and_residual_noise_is_fitted():
    z, generator = features()
    raw = (z[:, :2] + torch.randn(len(z), 2, generator=generator)).double()
    loss = Regression(noise="residual")
    heads = []
    for unit in (1.0, 1000.0):
        y, outputs = loss.prepare(raw * unit - 7, z, 0)
        heads.append(fit_head(z, y, outputs, loss=loss))
    assert_near(heads[0].weight, heads[1].weight, 1e-9)
    error = (heads[0].logits(z) - y).square().mean(0).sqrt()
    assert heads[0].loss.noise == pytest.approx(error.tolist())
    # The mean −log density at its own maximum over σ is Σ(½ + log σ + ½ log 2π).
    assert heads[0].nll == pytest.approx(float((0.5 + error.log() + math.log(2 * math.pi) / 2).sum()), rel=1e-6)


def test_a_dense_head_is_fitted_to_the_labelled_cells():
    z, generator = features(n=60)
    y = torch.randint(-1, 3, (60,), generator=generator)
    dense = fit_head(z.reshape(15, 2, 2, -1), y.reshape(15, 2, 2), 3, loss=Dense())
    plain = fit_head(z[y >= 0], y[y >= 0], 3)
    assert torch.equal(dense.weight, plain.weight)
    assert (dense.score, dense.nll) == (plain.score, plain.nll)


def test_dense_labels_are_those_under_the_cells_centres_and_absent_classes_close_up():
    pixels = torch.arange(36).reshape(1, 6, 6)
    aligned = Dense().align(pixels, torch.zeros(1, 2, 3, 10))
    assert aligned.tolist() == [[[7, 9, 11], [25, 27, 29]]]
    numbered, classes = Dense().prepare(torch.tensor([[[9, -1], [4, 9]]]), torch.zeros(1, 2, 2, 10), 0)
    assert numbered.tolist() == [[[1, -1], [0, 1]]]
    assert classes == 2


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        CrossEntropy(class_weights=(0.1, 1 / 3), label_smoothing=0.1),
        MultiLabel(num_classes=3, class_weights=[1, 2, 3]),
        Regression(noise="residual"),
        Regression(noise=(1 / 3, 2.0)),
        Dense(pool="layer4", ignore_index=0),
        PseudoLabels(num_clusters=4, label_smoothing=0.2),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_options_survive_json(loss):
    assert loss_of(json.loads(json.dumps(loss.options()))) == loss


# ---- what is refused


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (MultiLabel(), [[1.0, 0.0], [1.0, 1.0]], "label 0 is 1 for every image"),
        (MultiLabel(), [[1.0, torch.nan], [0.0, torch.nan]], "label 1 is known for no image"),
        (MultiLabel(), torch.zeros(0, 3), "expected a task with images"),
        (MultiLabel(class_weights=(1, 2, 3)), [[1.0, 0.0], [0.0, 1.0]], "class_weights of 2 numbers, got 3"),
        (Regression(), [[1.0, 3.0], [2.0, 3.0]], "target 1 is 3 for every image"),
        (Regression(), [[0.0], [0.0]], "target 0 is 0 for every image"),
        (Regression(noise=(1.0,)), [[1.0, 3.0], [2.0, 4.0]], "noise of 2 numbers, got 1"),
        (CrossEntropy(), [0, 0], "at least two classes"),
        (CrossEntropy(class_weights=(1, 2, 3)), [0, 1], "class_weights of 2 numbers, got 3"),
        (Dense(), [[[3, -1]]], "at least two classes .* got only class 3"),
        (Dense(), [[[-1, -1]]], "no labelled pixel; check ignore_index"),
        (PseudoLabels(num_clusters=3), [0, 0], "at least 3 images for 3 clusters, got 2"),
        (PseudoLabels(num_clusters=2), [0, 0], "expected 2 clusters, got 1 distinct"),
    ],
)
def test_targets_that_are_no_task_are_refused(loss, targets, message):
    pytest.importorskip("sklearn")
    targets = torch.as_tensor(targets)
    with pytest.raises(ValueError, match=message):
        loss.prepare(targets, torch.ones(len(targets), 4), 0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: as_loss("mse"), ValueError, "one of cross_entropy, multilabel, regression, dense; got 'mse'"),
        (lambda: as_loss(Regression), TypeError, r"pass Regression\(\), not the class"),
        (lambda: CrossEntropy(label_smoothing=1.0), ValueError, r"label_smoothing in \[0, 1\)"),
        (lambda: CrossEntropy(class_weights=(1, 0)), ValueError, "class_weights as positive numbers"),
        (lambda: Regression(noise="unit"), ValueError, "noise 'spread', 'residual' or"),
        (lambda: Regression(noise=(1, math.nan)), ValueError, "noise as positive numbers"),
        (lambda: PseudoLabels(num_clusters=1), ValueError, "num_clusters as a whole number >= 2"),
    ],
)
def test_bad_options_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_head_that_does_not_err_has_no_residual_noise():
    z, _ = features()
    y, outputs = Regression().prepare(z[:, :1].double(), z, 0)
    with pytest.raises(ValueError, match="expected a head with an error for noise='residual'"):
        fit_head(z, y, outputs, loss=Regression(noise="residual"), l2=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": Regression(), "class_balanced": True}, ValueError, "class_balanced with classes"),
        ({"loss": CrossEntropy(class_weights=(1, 2)), "class_balanced": True}, ValueError, "got both; drop one"),
        ({"loss": MultiLabel(), "method": "adam"}, NotImplementedError, "plain cross-entropy"),
    ],
)
def test_options_of_the_fit_that_exclude_each_other_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit_head(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), 2, **options)


@pytest.mark.parametrize("shape", [(1,), (3,), (7, 5, 2), (129,)], ids=str)
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_random_numbers_are_those_of_numpys_generator_of_seed_and_image(shape, seed):
    index = torch.tensor([5, 0, 2**40, 1])

    def each(draw):
        rows = [draw(np.random.Generator(np.random.Philox(key=[seed, i]))) for i in index.tolist()]
        return torch.from_numpy(np.stack(rows))

    cpu = torch.device("cpu")
    for draw in (lambda random: random.random(shape), lambda random: random.standard_normal(shape)):
        assert torch.equal(per_image(index, seed, draw, cpu), each(draw))
    signs = each(lambda random: random.integers(0, 2, shape) * 2 - 1)
    assert torch.equal(signs_per_image(index, seed, shape, cpu), signs)
