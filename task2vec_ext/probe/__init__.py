"""The fixed, pre-trained network that measures tasks: its weights, its layers, its copy with BatchNorm folded in."""

from .layers import Layer
from .load import load_probe
from .probe import Probe

__all__ = ["Layer", "Probe", "load_probe"]
