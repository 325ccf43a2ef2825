"""From folders, lists and data sets to batches of correct RGB tensors."""

from .images import load_image, to_rgb
from .labels import check_labels, draw
from .loader import Batch, Failure, batches
from .preprocess import Preprocess
from .sources import Tasks, tasks_from
from .targets import ClassLabel, LabelSet, Mask, Target, Unlabelled, Values
from .task import Task, TaskSource, as_task, read_labels
from .views import hold_out, one_vs_rest, remap, split, subset, union

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
    "Tasks",
    "Unlabelled",
    "Values",
    "as_task",
    "batches",
    "check_labels",
    "draw",
    "hold_out",
    "load_image",
    "one_vs_rest",
    "read_labels",
    "remap",
    "split",
    "subset",
    "tasks_from",
    "to_rgb",
    "union",
]
