import pytest
import torch
from cases import assert_near
from torch.nn import functional as F

from task2vec_ext.fisher.head import fit_head


def data(n=200, size=12, classes=4, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    scales = torch.logspace(1, -2, size)  # badly conditioned on purpose
    centres = torch.randn(classes, size, generator=generator)
    features = (centres[labels] * spread + torch.randn(n, size, generator=generator)) * scales + 5
    return features, labels


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("class_balanced", [False, True], ids=["plain", "balanced"])
def test_lbfgs_reaches_the_optimum_of_the_penalised_cross_entropy(l2, class_balanced):
    features, labels = data()
    features, labels = features[:150], labels[:150].where(torch.arange(150) % 7 != 0, 0)
    head = fit_head(features, labels, 4, l2=l2, class_balanced=class_balanced)
    weight, bias = (t.requires_grad_() for t in (head.weight, head.bias))
    counts = labels.bincount().double()
    weights = (len(labels) / (4 * counts))[labels] if class_balanced else torch.ones(len(labels))
    losses = F.cross_entropy(F.linear(features.double(), weight, bias), labels, reduction="none")
    loss = (weights * losses).mean() + l2 / 2 * weight.square().sum()
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert max(float(g.abs().max()) for g in gradients) < 1e-6
    assert head.nll == pytest.approx(float(losses.detach().mean()), abs=1e-9)


def test_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = data()
    model = linear_model.LogisticRegression(C=1 / (1e-2 * len(labels)), tol=1e-10, max_iter=10_000)
    model.fit(features.double().numpy(), labels.numpy())
    head = fit_head(features, labels, 4, l2=1e-2)
    theirs = torch.from_numpy(model.coef_)
    assert (head.weight - head.weight.mean(0) - theirs + theirs.mean(0)).abs().max() < 1e-4
    assert head.score == pytest.approx(model.score(features.double().numpy(), labels.numpy()))


def test_more_features_than_samples():
    features, labels = data(n=12, size=50)
    head = fit_head(features, labels, 4)
    assert head.score == 1.0
    assert torch.isfinite(head.weight).all()


def test_deterministic_and_independent_of_the_order_of_samples():
    features, labels = data()
    first, second = (fit_head(features, labels, 4) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = fit_head(features[order], labels[order], 4)
    assert (shuffled.weight - first.weight).abs().max() < 1e-3 * first.weight.abs().max()


def test_permuted_labels_give_the_permuted_head():
    features, labels = data()
    permutation = torch.tensor([2, 0, 3, 1])
    head, permuted = fit_head(features, labels, 4), fit_head(features, permutation[labels], 4)
    torch.testing.assert_close(permuted.weight[permutation], head.weight, rtol=1e-3, atol=1e-4)


def test_class_balance_moves_the_decision_towards_the_rare_class():
    features, labels = data(n=400, classes=2, spread=0.3)
    keep = (labels == 0) | (torch.arange(400) % 20 == 1)
    plain, balanced = (fit_head(features[keep], labels[keep], 2, l2=1.0, class_balanced=b) for b in (False, True))
    rare = features[keep][labels[keep] == 1]
    assert (balanced.logits(rare).argmax(1) == 1).float().mean() > (plain.logits(rare).argmax(1) == 1).float().mean()


@pytest.mark.parametrize("class_balanced", [False, True], ids=["plain", "balanced"])
def test_adam_learns_and_is_seeded(class_balanced):
    labels = torch.arange(2000) % 4
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 64, generator=generator)[labels] * 3 + torch.randn(2000, 64, generator=generator)
    fit = lambda seed: fit_head(  # noqa: E731
        features, labels, 4, method="adam", seed=seed, class_balanced=class_balanced
    )
    first, again, other = fit(0), fit(0), fit(1)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert first.score > 0.9
    state = torch.random.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):  # the caller's narrows nothing
        assert torch.equal(fit(0).weight, first.weight)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_not_positive_is_refused(l2):
    with pytest.raises(ValueError, match="expected l2 > 0"):
        fit_head(*data(), 4, l2=l2)


def test_features_that_are_not_finite_are_refused():
    features, labels = data()
    features[17, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity for 1 images, the first is number 17"):
        fit_head(features, labels, 4)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="'lbfgs' or 'adam', got 'sgd'"):
        fit_head(*data(), 4, method="sgd")


def test_a_fit_that_stops_early_warns(monkeypatch):
    from task2vec_ext import Task2VecWarning
    from task2vec_ext.fisher import head

    class Short(head._LBFGS):
        def __init__(self, parameters, **options):
            super().__init__(parameters, **{**options, "max_iter": 3})

    monkeypatch.setattr(head, "_LBFGS", Short)
    with pytest.warns(Task2VecWarning, match="short of its optimum"):
        fit_head(*data(), 4)


def test_the_default_penalty_goes_with_the_scale_of_the_features():
    features, labels = data()
    head, scaled = fit_head(features, labels, 4), fit_head(features * 30, labels, 4)
    assert_near(scaled.logits(features * 30), head.logits(features), 1e-5)
    variance = float(features.double().var(0, unbiased=False).mean())
    assert_near(fit_head(features, labels, 4, l2=0.1 * variance).weight, head.weight, 1e-9)
