"""Task2Vec: turn an image data set into a vector."""

from ._native import Task2VecWarning, build_info
from .ops import filter_grad_sq

__all__ = ["Task2VecWarning", "build_info", "filter_grad_sq"]
