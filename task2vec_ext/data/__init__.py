"""From folders, lists and data sets to batches of RGB tensors.

`as_task` makes a `Task` of a folder, a list or a torch data set; `tasks_from` makes many of published data sets, each
named by one line of text (`task2vec_ext.data.sources` has the list). Everything else takes tasks:

- `subset`, `split`, `hold_out`, `remap`, `one_vs_rest` and `union` make tasks from tasks;
- `read_labels`, `check_labels` and `draw` give the labels, their number of classes, and a random choice of images;
- `batches` decodes, applies a `Preprocess` and stacks; a `Loader` does so pass after pass, and an `ImageCache` keeps
  what is decoded; `load_image` and `to_rgb` decode one image;
- a `Target` says what the labels are: `ClassLabel` by default, others come with a loss.
"""

from ..words import OnError
from .folder import Files
from .image_cache import ImageCache
from .images import load_image, to_rgb
from .labels import check_labels, draw
from .loader import Batch, Loader, batches
from .preprocess import Preprocess
from .reader import Failure
from .sources import Tasks, tasks_from
from .targets import ClassLabel, LabelSet, Mask, Target, Unlabelled, Values
from .task import Task, TaskSource, as_task, read_labels
from .views import hold_out, one_vs_rest, remap, split, subset, union

__all__ = [
    "Batch",
    "ClassLabel",
    "Failure",
    "Files",
    "ImageCache",
    "LabelSet",
    "Loader",
    "Mask",
    "OnError",
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
