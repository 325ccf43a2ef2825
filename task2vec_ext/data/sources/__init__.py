"""Where tasks come from: published data sets, folders, tables, and other libraries' data sets, by one line of text.

| spec | tasks |
|---|---|
| ``folder:PATH`` or ``PATH`` | a folder of class folders: 1; ``PATH/*``: one each |
| ``table:FILE`` | a CSV or Parquet table: 1, or one for each value of a column |
| ``inat2018:ROOT`` (2017, 2019, 2021) | iNaturalist: the species of one order, family, class, … |
| ``cub:ROOT`` | CUB-200-2011: the species of one order, or songbird family |
| ``imat2018:ROOT`` | iMaterialist-Fashion 2018: an attribute shown or not, 228 |
| ``deepfashion:ROOT`` | DeepFashion: an attribute shown or not, 1,000 |
| ``torchvision:NAME`` | a data set of torchvision: 1 |
| ``hf:NAME`` | a data set of the Hugging Face hub: 1 |

Every task knows its labels before an image is read, can be pickled, and says in its ``metadata`` what it is about.
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
