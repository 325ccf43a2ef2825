"""Steps of known memory, in a module that a fresh process can import."""

import torch


def mebibytes(count):
    return torch.ones(count, 1 << 18)


def step_of(kept, freed, taken):
    held = mebibytes(kept)
    mebibytes(freed)
    return lambda: mebibytes(taken).sum() + held.sum()
