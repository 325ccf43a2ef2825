"""Networks that are random in eval mode are refused, by the name of the module."""

import random

import pytest
import torch
from small import Blobs
from torch import nn
from torch.nn import functional as F

from task2vec_ext import fisher_embed, load_probe


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


class Dropout(nn.Module):
    def forward(self, x):
        return F.dropout(x)  # training=True is its default


class DropPath(nn.Module):
    """Seldom: one image in twenty."""

    def forward(self, x):
        return x * (torch.rand(len(x), 1, 1, 1) > 0.05)


class Counting(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Coin(nn.Module):
    def forward(self, x):
        return x * random.random()  # another generator than torch's


class RReLU(nn.RReLU):
    def forward(self, x):
        return F.rrelu(x, training=True)


class Unused(nn.Module):
    """Draws, but changes nothing."""

    def forward(self, x):
        torch.rand(1)
        return x


class Net(nn.Module):
    def __init__(self, middle, after=None):
        super().__init__()
        self.conv, self.middle, self.fc = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Tanh(), middle), nn.Linear(4, 3)
        self.after = after or nn.Identity()

    def forward(self, x):
        return self.after(self.fc(self.middle(self.conv(x)).mean((2, 3))))


class Inline(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(F.dropout(self.conv(x).relu().mean((2, 3))))


@pytest.mark.parametrize("kind", [Noise, Dropout, DropPath, Coin, RReLU])
def test_a_random_module_is_named(kind):
    torch.manual_seed(0)
    probe = load_probe(Net(kind()).eval(), preprocess=None)
    with pytest.raises(ValueError, match=rf"'middle\.1' \({kind.__name__}\) gives another output each time"):
        fisher_embed(Blobs(), probe, progress=False)


def test_randomness_in_the_networks_own_forward_is_named():
    with pytest.raises(ValueError, match="the forward of Inline itself gives another output each time"):
        fisher_embed(Blobs(), load_probe(Inline().eval(), preprocess=None), progress=False)


def test_a_network_that_remembers_is_refused():
    with pytest.raises(ValueError, match=r"'middle\.1' \(Counting\)"):
        fisher_embed(Blobs(), load_probe(Net(Counting()).eval(), preprocess=None), progress=False)


def test_randomness_that_no_feature_sees_is_allowed():
    for net in (Net(Unused()), Net(nn.Identity(), after=Noise())):
        state = torch.random.get_rng_state()
        assert fisher_embed(Blobs(), load_probe(net.eval(), preprocess=None, head="fc"), progress=False).norm > 0
        assert state is not None
