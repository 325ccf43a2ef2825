"""The robust Fisher: the closed form it must converge to, and what it must leave alone."""

import dataclasses
import math

import pytest
import torch
from cases import assert_near
from small import TRAINABLE, assert_untouched, small_probe, small_resnet, state_of
from torch import nn

from task2vec_ext.data import Batch
from task2vec_ext.fisher.head import Head
from task2vec_ext.fisher.variational import VariationalSettings, _NoisyProbe, variational_epochs
from task2vec_ext.kernels import reference
from task2vec_ext.probe.folding import FoldedProbe, fold


def trainable():
    return small_probe(small_resnet(widths=TRAINABLE))


both_noises = pytest.mark.parametrize("noise", ["activations", "weights"])
FROZEN = 1e-12  # a learning rate at which the head stays where it is


class TwoLayers:
    """z = σ(Ux), p = σ(w·z): the Fisher has a closed form.

    The labels are p itself, the mean over y ∼ p: the loss then has no gradient at the clean weights, and what is left
    is the noise's second order alone.
    """

    num_images = 256

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(4, 12, generator=generator)
        self.second = 2 * torch.randn(4, generator=generator)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 2)).eval()
        with torch.no_grad():
            net[1].weight.copy_(self.first)
        self.probe = small_probe(net, "3")
        self.layers = self.probe.layers()
        self.head = Head(torch.stack([torch.zeros(4), self.second]), torch.zeros(2), 0.0, 0.0)
        self.images = torch.randn(self.num_images, 3, 2, 2, generator=generator)
        with torch.no_grad():
            p = torch.sigmoid(net[2](net[1](self.images.flatten(1))) @ self.second)
        self.batch = Batch(torch.arange(self.num_images), self.images, torch.stack([1 - p, p], 1))
        closed = reference.two_layer_fisher(self.first.double(), self.second.double(), self.images.double().flatten(1))
        self.fisher = closed.diagonal().reshape(4, 12).mean(1)

    def fit(self, seed, steps=600, learning_rate=0.1, **options):
        settings = VariationalSettings(head_learning_rate=FROZEN, learning_rate=learning_rate, **options)
        epochs = [[self.batch] * steps]
        *_, robust = variational_epochs(self.probe, self.layers, self.head, epochs, self.num_images, settings, seed)
        return robust


@both_noises
def test_the_objective_is_stationary_at_the_closed_form_within_3_standard_errors(noise):
    """At precision = F/2κ + λ² the likelihood's and the KL term's gradients cancel, up to σ's fourth power."""
    net, kappa = TwoLayers(), 1e-6
    noisy = _NoisyProbe(net.probe, net.layers, VariationalSettings(noise=noise), seed=3)
    precision = net.fisher / (2 * kappa) + 1 / noisy.mean_square.double()
    with torch.no_grad():
        noisy.log_variance.copy_(-precision.log())
    gradients = []
    for step in range(300):
        loss = nn.functional.cross_entropy(noisy.features(net.images, step) @ net.head.weight.T, net.batch.labels)
        (gradient,) = torch.autograd.grad(loss, noisy.log_variance)
        gradients.append(gradient.double())
    gradient = torch.stack(gradients)
    divergence = kappa * 12 * (1 / (precision * noisy.mean_square.double()) - 1)  # ∂/∂ log σ² of κ·P·(λ²σ² − log σ²)
    error = gradient.mean(0) + divergence
    standard_error = gradient.std(0) / math.sqrt(len(gradient))
    assert (standard_error <= 0.05 * divergence.abs()).all()  # or it could not fail
    assert (error.abs() <= 3 * standard_error).all()


@both_noises
def test_the_fit_converges_to_the_closed_form_within_3_standard_errors(noise):
    net, kappa = TwoLayers(), 1e-5
    fits = [net.fit(seed, noise=noise, beta=2 * kappa * net.num_images) for seed in range(4)]
    log_fisher = torch.stack([fit.fisher.log() for fit in fits])
    error, standard_error = log_fisher.mean(0) - net.fisher.log(), log_fisher.std(0) / math.sqrt(len(fits))
    assert (standard_error <= 0.12).all()
    assert (error.abs() <= 3 * standard_error + 0.02).all()  # + 0.02: σ's fourth power
    assert fits[0].kappa == pytest.approx(kappa)
    torch.testing.assert_close(fits[0].fisher + fits[0].prior, 2 * kappa * fits[0].log_variance.neg().exp())
    torch.testing.assert_close(fits[0].prior, 2 * kappa / net.first.double().square().mean() * torch.ones(4).double())


def test_the_authors_prior_is_learned():
    """∂J/∂λ² = 0: 1/λ² is the mean square of the noisy weights, which the noise here has made half as large again."""
    net = TwoLayers()
    robust = net.fit(0, objective="authors", beta=1e-2, steps=800)
    square, variance = net.first.double().square().mean(), robust.log_variance.exp().mean()
    assert variance >= 0.3 * square
    assert float(robust.prior_precision[0]) == pytest.approx(1 / float(square + variance), rel=0.02)
    assert len(robust.prior_precision.unique()) == 1
    fixed = net.fit(0, objective="paper", beta=2 * 1e-2 * net.num_images, steps=2)
    assert float(fixed.prior_precision[0]) == pytest.approx(1 / float(net.first.square().mean()))


def batches_of(count, seed=0, size=12):
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(torch.arange(4), torch.randn(4, 3, size, size, generator=generator), torch.tensor([0, 1, 2, 0]))
        for _ in range(count)
    ]


def head_of(probe, classes=3):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(classes, probe.feature_size, generator=generator)
    return Head(weight, torch.zeros(classes), 0.0, 0.0)


def run(probe, steps=3, seed=0, batches=None, **options):
    batches = batches or batches_of(steps)
    epochs, settings = [batches, batches], VariationalSettings(beta=1e-4, objective="authors", **options)
    return list(variational_epochs(probe, probe.layers(), head_of(probe), epochs, 12, settings, seed))


@both_noises
def test_probe_and_head_come_back_untouched_and_the_seed_decides(noise):
    probe = trainable()
    before, head = state_of(probe.module), head_of(probe)
    copy = dataclasses.replace(head, weight=head.weight.clone())
    first, last = run(probe, noise=noise)
    assert_untouched(probe.module, before)
    assert torch.equal(head.weight, copy.weight)
    assert (len(first.nll), len(last.nll)) == (1, 2)
    again, other = run(probe, noise=noise)[-1], run(probe, noise=noise, seed=1)[-1]
    assert torch.equal(last.log_variance, again.log_variance)
    assert not torch.equal(last.log_variance, other.log_variance)
    assert (last.fisher >= 0).all()


@both_noises
def test_an_exception_leaves_the_probe_untouched(noise):
    probe = trainable()
    before = state_of(probe.module)

    def broken():
        yield from batches_of(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(probe, batches=broken(), noise=noise)
    assert_untouched(probe.module, before)


@both_noises
def test_the_folded_probe_has_the_same_noise_on_the_original_weights(noise):
    probe = small_probe(small_resnet().double())
    layers, images = probe.layers(), batches_of(1)[0].images.double()
    folded = fold(probe, layers, images)
    assert isinstance(folded, FoldedProbe)
    options = VariationalSettings(noise=noise)
    a, b = (_NoisyProbe(each, layers, options, seed=3) for each in (probe, folded))
    torch.testing.assert_close(a.log_variance, b.log_variance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.mean_square, b.mean_square)
    results = []
    for noisy in (a, b):
        features = noisy.features(images, 5)
        results.append((features, *torch.autograd.grad(features.square().sum(), noisy.log_variance)))
    if noise == "activations":  # the same number at the same place of every output
        for ours, theirs in zip(*results, strict=True):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()  # variances are float32
    else:  # ε is that of a weight, whose sign a negative factor turns
        assert all((scale > 0).all() for scale in folded.scale.values())
        assert (results[0][0] - results[1][0]).abs().max() <= 1e-4 * results[0][0].abs().max()


@both_noises
def test_gradients_of_the_noisy_network_equal_finite_differences(noise):
    """Through all layers, the noise's way through the norms of the next layers' inputs included."""
    probe = small_probe(small_resnet().double())
    layers, images = probe.layers(), batches_of(1)[0].images.double()
    noisy = _NoisyProbe(probe, layers, VariationalSettings(noise=noise, objective="authors"), seed=3)
    noisy.flat = noisy.flat.double() if noise == "weights" else None
    noisy.log_variance = (noisy.log_variance.detach().double() - 3).requires_grad_()
    noisy.log_scale = noisy.log_scale.double()

    def value(log_variance):
        noisy.log_variance = log_variance
        return noisy.features(images, 0).sin().sum()

    start = noisy.log_variance
    (gradient,) = torch.autograd.grad(value(start), start)
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        difference = (value(start + step * direction) - value(start - step * direction)) / (2 * step)
    assert float(gradient @ direction) == pytest.approx(float(difference), rel=1e-6)


@both_noises
def test_attention_is_noisy_too(noise):
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.fc = nn.Linear(6, 3)

        def forward(self, images):
            x = images.flatten(2)[..., :6]
            return self.fc(self.attention(x, x, x)[0].mean(1))

    torch.manual_seed(0)
    probe = small_probe(Sequence().eval())
    assert [layer.name for layer in probe.layers()] == ["attention.in_proj", "attention.out_proj"]
    robust = run(probe, noise=noise)[-1]
    assert torch.isfinite(robust.log_variance).all()
    noisy = _NoisyProbe(probe, probe.layers(), VariationalSettings(noise=noise), 0)
    images = batches_of(1)[0].images
    assert (noisy.features(images, 0) - probe.features(images)).abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(noisy.features(images, 0).square().sum(), noisy.log_variance)
    assert (gradient.abs() > 0).sum() >= 20  # of 24: keys' biases of a softmax have none


def test_images_are_drawn_with_replacement_and_classes_equally_often():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    first, second = VariationalSettings(epochs=2, epoch_samples=30_000).epochs_of(labels, seed=4)
    assert not torch.equal(first, second)
    share = torch.bincount(labels[first]) / len(first)
    assert (share - 1 / 3).abs().max() <= 4.5 * math.sqrt(2 / 9 / len(first))
    within = torch.bincount(first, minlength=100)[:90].double()
    assert (within - len(first) / 270).abs().max() <= 5 * math.sqrt(len(first) / 270)
    assert set(first.tolist()) == set(range(100))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 0}, "expected beta > 0, got 0"),
        ({"beta": -1e-7}, "expected beta > 0"),
        ({"beta": math.nan}, "expected beta > 0"),
        ({"epochs": 0}, "expected epochs as a whole number >= 1"),
        ({"epoch_samples": 1.5}, "expected epoch_samples as a whole number"),
        ({"objective": "other"}, "expected objective 'paper' or 'authors'"),
        ({"noise": "both"}, "expected noise 'activations' or 'weights'"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, words):
    with pytest.raises(ValueError, match=words):
        VariationalSettings(**options)


@both_noises
def test_a_loss_that_is_not_finite_names_step_and_layer(noise):
    probe = trainable()
    good, bad = batches_of(2)
    bad.images[0, 0, 0, 0] = math.inf
    with pytest.raises(RuntimeError, match=r"not finite at step 1: the output of layer 'conv1' is"):
        run(probe, batches=[good, bad], noise=noise)


def test_in_bfloat16_the_noise_is_that_of_float32():
    probe, images = trainable(), batches_of(1)[0].images
    expected, actual = (
        _NoisyProbe(one, one.layers(), VariationalSettings(), 0).features(images, 0)
        for one in (probe, probe.computing_in("bfloat16"))
    )
    assert actual.dtype == torch.bfloat16
    assert_near(actual.float(), expected, 0.05)  # bfloat16 keeps 8 bits


@both_noises
def test_autocast_of_the_callers_is_for_the_network_alone(noise):
    # Autocast leaves float64 as it is, so that a narrowed loss would be all the difference.
    probe = small_probe(small_resnet(widths=TRAINABLE).double())
    batches = [batch._replace(images=batch.images.double()) for batch in batches_of(2)]
    expected = run(probe, batches=batches, noise=noise)[-1]
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(probe, batches=batches, noise=noise)[-1]
    assert actual.nll == expected.nll
    assert torch.equal(actual.fisher, expected.fisher)


def test_noise_that_is_not_finite_is_its_own_layers():
    probe = small_probe()
    noisy = _NoisyProbe(probe, probe.layers(), VariationalSettings(), 0)
    with torch.no_grad():
        noisy.log_variance[5] = 200  # finite, and its σ is not
    assert noisy.blame(batches_of(1)[0].images, 0) == f"the output of layer {probe.layers()[1].name!r} is"


@both_noises
def test_a_last_step_to_variances_that_are_not_finite_keeps_nothing(noise):
    probe, settings = trainable(), VariationalSettings(beta=1e38, objective="authors", noise=noise)
    fit = variational_epochs(probe, probe.layers(), head_of(probe), [batches_of(1)], 12, settings)
    with pytest.raises(RuntimeError, match=r"gradient is not finite at step 0: the variances of layer 'conv1' are"):
        next(fit)


def test_variances_that_are_not_finite_are_named():
    probe = small_probe()
    noisy = _NoisyProbe(probe, probe.layers(), VariationalSettings(), 0)
    with torch.no_grad():
        noisy.log_variance[5] = math.nan  # after the 4 filters of conv1
    assert noisy.blame(batches_of(1)[0].images, 0) == f"the variances of layer {probe.layers()[1].name!r} are"
