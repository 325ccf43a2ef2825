import warnings
from contextlib import nullcontext

import pytest
import torch
from cases import assert_near
from small import Blobs, assert_untouched, small_probe, small_resnet, state_of
from torch import nn

from task2vec_ext.data import Batch
from task2vec_ext.fisher import per_sample
from task2vec_ext.fisher.capture import _grad_sq
from task2vec_ext.fisher.head import Head
from task2vec_ext.fisher.per_sample import ESTIMATORS, cotangents, per_sample_fisher, sum_fisher
from task2vec_ext.kernels import reference
from task2vec_ext.losses import CrossEntropy, MultiLabel, Regression
from task2vec_ext.probe.folding import fold
from task2vec_ext.probe.layers import Layer
from task2vec_ext.probe.watch import BatchNormUse

N, C = 5, 3


def batch_of(n=N, dtype=torch.float64, side=12):
    blobs = Blobs(n, side=side)
    return Batch(torch.arange(n), blobs.images.to(dtype), blobs.targets)


def head_for(size, dtype=torch.float64, classes=C, scale=0.3):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(classes, size, generator=generator, dtype=torch.float64) * scale
    return Head(weight.to(dtype), torch.zeros(classes, dtype=dtype), 0.0, 0.0)


def oracle(probe, head, batch, layers, estimator):
    """Autograd at batch size one through the whole network and the head, one backward pass per cotangent."""
    weights = [probe.module.get_submodule(layer.name).weight.requires_grad_() for layer in layers]
    net = lambda x: head.logits(probe.features(x))  # noqa: E731
    logits = net(batch.images).detach()
    total = 0
    for v in cotangents(estimator, logits, batch.labels, batch.index):
        total = total + torch.cat(reference.per_sample_grad_sq(net, batch.images, v, weights), 1)
    fan_in = torch.cat([torch.full((layer.stop - layer.start,), float(layer.fan_in)) for layer in layers])
    return total / fan_in


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("batchnorm", [False, True], ids=["convs", "with-batchnorm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_per_sample_fisher_equals_autograd_at_batch_size_one(estimator, batchnorm, dtype, tolerance):
    probe = small_probe(small_resnet().to(dtype))
    layers = probe.layers(include_batchnorm=batchnorm)
    head, batch = head_for(10, dtype), batch_of(dtype=dtype)
    actual = per_sample_fisher(probe, layers, head, batch, estimator)
    expected = oracle(probe, head, batch, layers, estimator)
    for layer in layers:  # each on its own scale: late layers' gradients are far larger
        rows = slice(layer.start, layer.stop)
        assert_near(actual[:, rows], expected[:, rows], tolerance)


def test_exact_equals_the_two_layer_closed_form():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    second = torch.randn(4, generator=generator, dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        net[1].weight.copy_(first)
    # softmax over the logits (0, w·z) is σ(w·z)
    head = Head(torch.stack([torch.zeros_like(second), second]), torch.zeros(2, dtype=torch.float64), 0.0, 0.0)
    images = torch.randn(30, 3, 2, 2, generator=generator, dtype=torch.float64)
    batch = Batch(torch.arange(30), images, torch.zeros(30, dtype=torch.int64))
    probe = small_probe(net, "3")
    actual = sum_fisher(probe, probe.layers(), head, [batch], "exact").mean
    closed = reference.two_layer_fisher(first, second, images.flatten(1)).diagonal().reshape(4, 12).mean(1)
    assert_near(actual, closed, 1e-13)


def test_sampled_equals_the_authors_algorithm_at_batch_size_one():
    probe = small_probe(small_resnet().double())
    layers, head, batch = probe.layers(), head_for(10), batch_of(8)
    net = nn.Sequential()
    net.forward = lambda x: head.logits(probe.features(x))
    labels = CrossEntropy().sample(net(batch.images).detach(), batch.labels, batch.index, seed=7)
    assert len(labels.unique()) > 1
    weights = [probe.module.get_submodule(layer.name).weight for layer in layers]
    theirs = torch.cat(reference.authors_monte_carlo(net, batch.images, labels, weights, batch_size=1))
    ours = sum_fisher(probe, layers, head, [batch], "sampled", seed=7).mean
    assert_near(ours, theirs, 1e-12)


def test_exact_cotangents_have_the_softmax_covariance():
    logits = torch.randn(6, 4, dtype=torch.float64) * 3
    v = torch.stack(list(cotangents("exact", logits, torch.zeros(6).long(), torch.arange(6))), 1)  # [B, passes, C]
    assert_near(v.transpose(1, 2) @ v, reference.softmax_covariance(logits), 1e-13)


@pytest.mark.parametrize("estimator", ["signed", "sampled"])
def test_random_cotangents_have_the_softmax_covariance_within_5_standard_errors(estimator):
    draws = 20_000
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0]], dtype=torch.float64).expand(draws, -1)
    (v,) = cotangents(estimator, logits, torch.zeros(draws).long(), torch.arange(draws))
    products = v[:, :, None] * v[:, None, :]
    error = (products.mean(0) - reference.softmax_covariance(logits[:1])[0]).abs()
    assert (error <= 5 * products.std(0) / draws**0.5 + 1e-12).all()


def test_signed_has_the_smaller_variance_where_the_head_is_confident():
    logits = torch.tensor([[6.0, 0.0, 0.0]], dtype=torch.float64).expand(5000, -1)
    arguments = logits, torch.zeros(5000).long(), torch.arange(5000)
    signed, sampled = (next(cotangents(e, *arguments)).square().sum(1) for e in ("signed", "sampled"))
    assert signed.std() < 0.3 * sampled.std()


def test_empirical_uses_the_data_labels():
    logits, labels = torch.randn(4, 3), torch.tensor([2, 0, 1, 1])
    (v,) = cotangents("empirical", logits, labels, torch.arange(4))
    torch.testing.assert_close(v, logits.softmax(1) - torch.eye(3)[labels])


@pytest.mark.parametrize("estimator", ["signed", "sampled"])
def test_noise_is_a_function_of_seed_and_image_alone(estimator):
    probe, head = small_probe(), head_for(10, torch.float32)
    layers, batch = probe.layers(), batch_of(6, torch.float32)
    whole = per_sample_fisher(probe, layers, head, batch, estimator, seed=1)
    order = torch.tensor([4, 1, 5])
    part = per_sample_fisher(probe, layers, head, Batch(*(field[order] for field in batch)), estimator, seed=1)
    assert_near(part, whole[order], 1e-5)
    other = per_sample_fisher(probe, layers, head, batch, estimator, seed=2)
    assert (whole - other).abs().max() > 1e-3 * whole.max()


def test_exact_streams_over_many_classes():
    probe, head = small_probe(), head_for(10, torch.float32, classes=300)
    batch = batch_of(2, torch.float32)
    layers = probe.layers(["layer4"])
    assert_near(
        per_sample_fisher(probe, layers, head, batch, "exact"), oracle(probe, head, batch, layers, "exact"), 1e-4
    )


def test_inner_linear_layers_and_other_padding_modes_and_biases():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.ReLU(inplace=True),  # right after the first conv: the start of the graph is overwritten in place
        nn.Conv2d(4, 4, (3, 2), padding=(2, 1), padding_mode="reflect", groups=2),
        nn.GELU(),
        nn.Conv2d(4, 5, 3, padding=1, padding_mode="replicate", stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    )
    probe = small_probe(net.double().eval(), "9")
    layers, head, batch = probe.layers(), head_for(6), batch_of()
    assert [layer.kind for layer in layers] == ["conv"] * 3 + ["linear"]
    assert_near(per_sample_fisher(probe, layers, head, batch), oracle(probe, head, batch, layers, "signed"), 1e-10)


def test_the_probe_comes_back_untouched_and_no_weight_gradient_is_left():
    probe = small_probe()
    probe.module.layer2.requires_grad_(False)
    before = state_of(probe.module)
    per_sample_fisher(
        probe, probe.layers(include_batchnorm=True), head_for(10, torch.float32), batch_of(2, torch.float32)
    )
    assert_untouched(probe.module, before)


def test_the_probe_comes_back_untouched_after_an_exception():
    probe = small_probe()
    before = state_of(probe.module)
    with pytest.raises(RuntimeError):
        per_sample_fisher(probe, probe.layers(), head_for(11, torch.float32), batch_of(2, torch.float32))
    assert_untouched(probe.module, before)


def test_works_under_no_grad_and_inference_leaves_grad_mode_alone():
    probe = small_probe()
    with torch.no_grad():
        row = per_sample_fisher(probe, probe.layers(), head_for(10, torch.float32), batch_of(2, torch.float32))
        assert not torch.is_grad_enabled()
    assert row.shape == (2, probe.layers()[-1].stop)
    assert (row > 0).any()


def test_train_mode_is_refused():
    probe = small_probe()
    probe.module.layer3[0].bn1.train()
    with pytest.raises(ValueError, match=r"submodule 'layer3.0.bn1'.*call module.eval\(\)"):
        per_sample_fisher(probe, probe.layers(), head_for(10, torch.float32), batch_of(2, torch.float32))


def test_a_reused_layer_is_refused_by_name():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.conv(self.conv(x)).mean((2, 3)))

    probe = small_probe(Twice().eval())
    with pytest.raises(NotImplementedError, match="'conv' ran twice"):
        per_sample_fisher(probe, probe.layers(), head_for(3, torch.float32), batch_of(2, torch.float32))


def test_a_layer_without_gradient_is_named():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.aside, self.fc = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Linear(3, 2)

        def forward(self, x):
            self.aside(x)
            return self.fc(self.conv(x).mean((2, 3)))

    probe = small_probe(Dead().eval())
    with pytest.raises(RuntimeError, match=r"no gradient reached aside.*layers="):
        per_sample_fisher(
            probe, probe.layers(["conv", "aside"]), head_for(3, torch.float32), batch_of(2, torch.float32)
        )
    assert per_sample_fisher(
        probe, probe.layers(["conv"]), head_for(3, torch.float32), batch_of(2, torch.float32)
    ).shape == (2, 3)


def test_an_input_changed_in_place_is_refused_by_name():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3), nn.Linear(3, 2)

        def forward(self, x):
            x = x.clone()
            out = self.conv(x)
            x.zero_()
            return self.fc(out.mean((2, 3)))

    probe = small_probe(Overwrites().eval())
    with pytest.raises(RuntimeError, match="input of layer 'conv' was changed in place"):
        per_sample_fisher(probe, probe.layers(), head_for(3, torch.float32), batch_of(2, torch.float32))


def test_an_output_that_is_not_finite_names_the_images():
    probe, batch = small_probe(), batch_of(3, torch.float32)
    batch.images[1] = float("inf")
    with pytest.raises(ValueError, match="expected finite outputs of small"):
        per_sample_fisher(probe, probe.layers(), head_for(10, torch.float32), batch)


def test_layers_are_restricted_to_a_slice_of_the_whole():
    probe, head, batch = small_probe(), head_for(10, torch.float32), batch_of(3, torch.float32)
    whole, part = probe.layers(), probe.layers(["layer3.0.conv2", "layer4"])
    names = [layer.name for layer in part]
    assert names == [layer.name for layer in whole if layer.name == "layer3.0.conv2" or "layer4" in layer.name]
    columns = torch.cat([torch.arange(layer.start, layer.stop) for layer in whole if layer.name in names])
    assert_near(
        per_sample_fisher(probe, part, head, batch), per_sample_fisher(probe, whole, head, batch)[:, columns], 1e-6
    )


def test_layer_slices_carry_kind_and_fan_in():
    assert small_probe().layers(include_batchnorm=True)[:3] == [
        Layer("conv1", "conv", 0, 4, 27),
        Layer("bn1", "batchnorm", 4, 8, 1),
        Layer("layer1.0.conv1", "conv", 8, 12, 36),
    ]


@pytest.mark.parametrize("how", ["autocast", "bfloat16 module"])
def test_16_bit_networks_on_the_cpu_are_close_to_float32(how):
    head, batch = head_for(10, torch.float32), batch_of(4, torch.float32)
    probe = small_probe()
    expected = per_sample_fisher(probe, probe.layers(), head, batch, "exact")
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            actual = per_sample_fisher(probe, probe.layers(), head, batch, "exact")
    else:
        narrow = small_probe(small_resnet().bfloat16())
        batch = batch._replace(images=batch.images.bfloat16())
        actual = per_sample_fisher(narrow, narrow.layers(), head, batch, "exact")
    assert_near(actual, expected, 0.1)  # bfloat16 keeps 8 bits


def test_a_second_take_without_a_backward_pass_is_an_error():
    from task2vec_ext.fisher.capture import capture
    from task2vec_ext.probe.probe import frozen

    probe = small_probe()
    with frozen(probe.module), capture(probe.module, probe.layers(), 2) as captured:
        features = probe.features(batch_of(2, torch.float32).images)
        features.sum().backward()
        captured.take()
        with pytest.raises(RuntimeError, match="no gradient reached conv1"):
            captured.take()


def test_autocast_of_the_callers_does_not_narrow_the_entries_of_batchnorm():
    generator = torch.Generator().manual_seed(0)
    input = 3 + torch.randn(2, 4, 9, 9, generator=generator)  # Σ δ·x and μ·Σ δ nearly cancel
    grad_output = 1 + torch.randn(2, 4, 9, 9, generator=generator)
    use = BatchNormUse(input, torch.full((4,), 3.0), torch.ones(4), torch.ones(4))
    expected = _grad_sq(use, input, grad_output, 2)
    assert_near(expected, (grad_output * (input - 3)).double().sum((2, 3)).square(), 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_grad_sq(use, input, grad_output, 2), expected)


def test_autocast_of_the_callers_is_for_the_network_alone():
    # Autocast leaves float64 as it is, so that a narrowed head would be all the difference.
    probe, head, batch = small_probe(small_resnet().double()), head_for(10, torch.float32), batch_of(4)
    expected = per_sample_fisher(probe, probe.layers(), head, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(per_sample_fisher(probe, probe.layers(), head, batch), expected)


# ---- what waits for a GPU -------------------------------------------------------------------------------------------

LOSSES = {
    "cross_entropy": (CrossEntropy(), torch.arange(40) % C),
    "multilabel": (MultiLabel(), torch.eye(C)[torch.arange(40) % C]),
    "regression": (Regression(noise=(1.0, 2.0, 0.5)), torch.arange(40.0 * C).view(40, C)),
}
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def on(device, loss):
    """A folded probe, its layers, a head and a batch of 40 images on a device; the images' numbers on the CPU."""
    probe, batch = small_probe(), batch_of(40, torch.float32)
    layers = probe.layers(include_batchnorm=True)[:-1]  # the last BatchNorm is folded
    probe = fold(probe, layers, batch.images[:1])
    probe.module.to(device)
    probe.scale.update({name: factor.to(device) for name, factor in probe.scale.items()})
    loss, targets = LOSSES[loss]
    head = head_for(10)
    head = Head(head.weight.to(device), head.bias.to(device), 0.0, 0.0, loss)
    return probe, layers, head, Batch(batch.index, batch.images.to(device), targets.to(device))


@every_loss
@every_estimator
def test_a_pass_reads_one_flag_a_batch_and_its_sums_once(estimator, loss, monkeypatch):
    """On the meta device: whatever would wait for a GPU (item, nonzero, a copy to the CPU) raises there."""
    probe, layers, head, batch = on("meta", loss)
    flags, fetched = [], []
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which has no meta device
    monkeypatch.setattr(per_sample, "later", lambda flag: flags.append(flag.shape) or (lambda: True))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: fetched.append(self.shape) or torch.zeros(self.shape))
    assert sum_fisher(probe, layers, head, [batch] * 3, estimator).samples == 120
    assert flags == [()] * 3
    assert fetched == [(32, layers[-1].stop)]


@pytest.mark.cuda
@every_loss
@every_estimator
def test_a_pass_synchronises_with_the_gpu_once(estimator, loss):
    probe, layers, head, batch = on("cuda", loss)
    sum_fisher(probe, layers, head, [batch], estimator)  # what is loaded and made at first
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            per_sample_fisher(probe, layers, head, batch, estimator)
            assert [str(one.message) for one in seen] == []
            sum_fisher(probe, layers, head, [batch] * 3, estimator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ["synchroniz" in str(one.message) for one in seen] == [True]


@pytest.mark.cuda
@every_loss
def test_a_gpu_gives_the_cpus_numbers(loss):
    (cpu, *arguments), (gpu, *on_gpu) = on("cpu", loss), on("cuda", loss)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        assert_near(per_sample_fisher(gpu, *on_gpu).cpu(), per_sample_fisher(cpu, *arguments), 1e-3)
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
