"""The network's pass, replayed: the graphs are those of tests/support/graphs.py, on the CPU."""

import warnings

import graphs
import pytest
import torch
from small import assert_untouched, small_probe, small_resnet, state_of
from torch import nn

from task2vec_ext._util.warnings import Task2VecWarning
from task2vec_ext.data import Batch
from task2vec_ext.fisher import HeadSettings, fit_cross_fit_head, sum_fisher
from task2vec_ext.fisher.head import Head
from task2vec_ext.fisher.per_sample import ESTIMATORS
from task2vec_ext.losses import CrossEntropy

SIZES = 4, 4, 4, 2, 4


def batches_of(sizes=SIZES, side=12):
    """Batches of random images; no two are alike."""
    index = torch.arange(sum(sizes))
    images = torch.randn(len(index), 3, side, side, generator=torch.Generator().manual_seed(1))
    return [
        Batch(*part) for part in zip(index.split(sizes), images.split(sizes), (index % 3).split(sizes), strict=True)
    ]


def head_of(size=10):
    weight = torch.randn(3, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Head(weight, torch.zeros(3, dtype=torch.float64), 0.0, 0.0)


def both(monkeypatch, probe, head, batches, estimator="signed", **options):
    """The sums as torch runs the passes, and from graphs, and the graphs."""
    arguments = probe, probe.layers(), head
    plain = sum_fisher(*arguments, batches, estimator, **options)
    made = graphs.install(monkeypatch)
    return plain, sum_fisher(*arguments, batches, estimator, cuda_graphs=True, **options), made


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_replayed_passes_give_the_same_sums(monkeypatch, estimator):
    probe = small_probe()
    before = state_of(probe.module)
    plain, replayed, made = both(monkeypatch, probe, head_of(), batches_of(), estimator)
    assert torch.equal(plain.totals, replayed.totals)
    # The second batch records and tries; the first and the smaller one run as usual.
    batches, passes = 3, 3 if estimator == "exact" else 1
    assert [graph.replays for graph in made] == [1 + batches, 1 + batches * passes]
    assert_untouched(probe.module, before)


def test_a_network_that_is_not_folded_is_replayed(monkeypatch):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_resnet()

        def forward(self, x):
            return self.net(x) if x.mean().isfinite() is not None else x  # no trace of it

    probe = small_probe(Branching().eval(), "net.fc")
    plain, replayed, made = both(monkeypatch, probe, head_of(), batches_of())
    assert torch.equal(plain.totals, replayed.totals)
    assert len(made) == 2


def test_every_image_keeps_its_own_head(monkeypatch):
    probe, batches = small_probe(), batches_of()
    index, images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        features = probe.features(images)
    head = fit_cross_fit_head(features, labels, 3, index, CrossEntropy(), HeadSettings(cross_fit=3), 0)
    plain, replayed, made = both(monkeypatch, probe, head, batches)
    assert torch.equal(plain.totals, replayed.totals)
    assert made[0].replays == 4


def test_rel_error_stops_at_the_same_image(monkeypatch):
    sizes = (30,) * 6
    plain, replayed, made = both(monkeypatch, small_probe(), head_of(), batches_of(sizes), rel_error=0.5)
    assert plain.samples == replayed.samples < sum(sizes)
    assert torch.equal(plain.totals, replayed.totals)
    assert made[0].replays > 1


class Reads(nn.Module):
    def forward(self, x):
        return x / x.abs().max().item()


class Random(nn.Module):
    def forward(self, x):
        return x * (1 + torch.rand(1).to(x))


@pytest.mark.parametrize(("middle", "why"), [(Reads(), "not permitted"), (Random(), "other numbers")])
def test_a_network_that_cannot_be_replayed_runs_as_usual_and_says_so_once(monkeypatch, middle, why):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    probe, batches, head = small_probe(net.eval(), "5"), batches_of(), head_of(4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", Task2VecWarning)
        plain, replayed, _ = both(monkeypatch, probe, head, batches)
    (one,) = [str(warning.message) for warning in told if "CUDA graphs" in str(warning.message)]
    assert why in one
    assert replayed.samples == plain.samples
    if isinstance(middle, Reads):
        torch.testing.assert_close(plain.totals, replayed.totals)
