"""An atlas as a test reads it, and tasks of plain images for one."""

import json
import re

import torch
from PIL import Image

from task2vec_ext import as_task


def data_of(page) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="atlas-data">(.*?)</script>', text, re.S)[1])


def images_of(name, colours, broken=()):
    """A task of one plain image for each (label, colour)."""

    class Images(torch.utils.data.Dataset):
        @property
        def targets(self):
            return [label for label, _ in colours]

        def __len__(self):
            return len(colours)

        def __getitem__(self, index):
            if index in broken:
                raise OSError("cannot read")
            label, colour = colours[index]
            return Image.new("RGB", (40, 90), colour), label

    return as_task(Images(), name=name)
