"""The counter-based generator of the noise: published words, moments, independence."""

import math

import numpy as np
import pytest
import torch

from task2vec_ext import _C
from task2vec_ext.kernels import noise_kernels, reference

KEY = {"seed": 2**40 + 5, "layer": 3, "step": 2}

# Known answers of philox4x32-10 from the authors' Random123.
KNOWN = [
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        0x299F31D0A4093822,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("key", "counter", "words"), KNOWN)
def test_philox_gives_the_published_words(key, counter, words):
    assert tuple(_C.cpu.philox(key, counter)) == words
    assert tuple(reference.philox(key, counter).tolist()) == words


def drawn(shape, dtype=torch.float32, **key):
    """The ε of `local_noise`: unit variance, unit norm, nothing to add it to."""
    zeros = torch.zeros(shape, dtype=dtype)
    norm, sigma = torch.ones(shape[0], 1, *shape[2:], dtype=dtype), torch.ones(shape[1], dtype=dtype)
    return noise_kernels.add_noise(zeros, norm, sigma, *(KEY | key).values())


@pytest.mark.parametrize("isa", _C.cpu.instruction_sets())
def test_normals_are_those_of_the_reference_to_float32_rounding(isa):
    _C.cpu.use_instruction_set(isa)
    try:
        shape = (2, 30, 37, 41)
        expected = reference.local_normals(shape, *KEY.values())
        # A word that differed in its lowest bit would move a number by up to 1e-5 (near u = 1) and, all told, the mean.
        error = (drawn(shape).double() - expected).abs()
        assert error.max() <= 2e-6  # measured 6e-7: 7 standard deviations, in units of the last place
        assert (drawn(shape, torch.float64) - expected).abs().max() <= 1e-13
    finally:
        _C.cpu.use_instruction_set(_C.cpu.instruction_sets()[0])


def test_moments():
    count = 10**6
    e = drawn((1, 1000, 25, 40), torch.float64).flatten()
    # Standard errors: mean 1/√n, variance √(2/n), third moment √(15/n), fourth √(96/n); 4.5 of them.
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((e**power).mean()) - moment) <= 4.5 * math.sqrt(spread / count)
    distance = np.abs(np.sort(torch.special.ndtr(e).numpy()) - (np.arange(count) + 0.5) / count).max()
    assert distance <= 1.95 / math.sqrt(count)  # Kolmogorov–Smirnov, 1 in 1,000


def test_positions_filters_samples_layers_steps_and_seeds_are_independent():
    shape = (2, 64, 50, 50)
    e = drawn(shape, torch.float64)
    other = {
        "location": (e[..., 1:], e[..., :-1]),
        "filter": (e[:, 1:], e[:, :-1]),
        "sample": (e[1:], e[:-1]),
        "layer": (e, drawn(shape, torch.float64, layer=4)),
        "step": (e, drawn(shape, torch.float64, step=3)),
        "seed": (e, drawn(shape, torch.float64, seed=KEY["seed"] + 1)),
        "high half of the seed": (e, drawn(shape, torch.float64, seed=KEY["seed"] + 2**32)),
    }
    for name, (a, b) in other.items():
        assert abs(float((a * b).mean())) <= 4.5 / math.sqrt(a.numel()), name
        assert abs(float(((a**2 - 1) * (b**2 - 1)).mean())) <= 4.5 * 2 / math.sqrt(a.numel()), name


def test_the_largest_number_there_is():
    """No word gives infinity: u is at least 2⁻³³."""
    assert float(drawn((4, 256, 64, 64)).abs().max()) <= math.sqrt(2 * 33 * math.log(2)) + 1e-5
