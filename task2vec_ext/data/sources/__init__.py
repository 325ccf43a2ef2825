"""Tasks from published data sets, folders, tables and other libraries' data sets, named by one line of text.

Pass such specs to `tasks_from`, or call the functions that they stand for.

| spec | tasks |
|---|---|
| ``folder:PATH`` or ``PATH`` | the classes of a folder of class folders; ``PATH/*``: one task per folder |
| ``table:FILE`` | the classes of a CSV or Parquet table; one task, or one per value of a column |
| ``inat2018:ROOT`` (2017, 2019, 2021) | iNaturalist: the species of each order, family, class, … |
| ``cub:ROOT`` | CUB-200-2011: the species of each order and each songbird family |
| ``imat2018:ROOT`` | iMaterialist-Fashion 2018: each of 228 attributes, shown or not |
| ``deepfashion:ROOT`` | DeepFashion: each of 1,000 attributes, shown or not |
| ``torchvision:NAME`` | a data set of torchvision, as one task |
| ``hf:NAME`` | a data set of the Hugging Face hub, as one task |

All tasks list their labels without reading an image, can be pickled, and describe themselves in ``metadata``.
"""

from .cub import bird_taxonomy, cub
from .fashion import deepfashion, imaterialist
from .inaturalist import inaturalist
from .lazy import Tasks
from .named import hugging_face, torchvision
from .spec import folder, tasks_from
from .table import table

__all__ = [
    "Tasks",
    "bird_taxonomy",
    "cub",
    "deepfashion",
    "folder",
    "hugging_face",
    "imaterialist",
    "inaturalist",
    "table",
    "tasks_from",
    "torchvision",
]
