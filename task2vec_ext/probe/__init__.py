"""The fixed, pre-trained network that measures tasks: its weights, its layers, its copy with BatchNorm folded in."""

from .layers import Layer
from .probe import Probe, load_probe

__all__ = ["Layer", "Probe", "load_probe"]
