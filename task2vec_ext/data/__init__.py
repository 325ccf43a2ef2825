"""From folders, lists and data sets to batches of correct RGB tensors."""

from .images import load_image, to_rgb
from .labels import check_labels, draw
from .loader import Batch, Failure, batches
from .preprocess import Preprocess
from .targets import ClassLabel, LabelSet, Mask, Target, Unlabelled, Values
from .task import Task, TaskSource, as_task, read_labels

__all__ = [
    "Batch",
    "ClassLabel",
    "Failure",
    "LabelSet",
    "Mask",
    "Preprocess",
    "Target",
    "Task",
    "TaskSource",
    "Unlabelled",
    "Values",
    "as_task",
    "batches",
    "check_labels",
    "draw",
    "load_image",
    "read_labels",
    "to_rgb",
]
