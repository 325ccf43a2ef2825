"""The embedding of a task: a vector, what it was made with, and its file."""

from .embedding import Embedding
from .info import HeadInfo, ProbeInfo

__all__ = ["Embedding", "HeadInfo", "ProbeInfo"]
