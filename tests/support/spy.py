"""A data set that tells whether the process that reads it touches CUDA; it imports nothing of the package."""

import sys

import torch
from PIL import Image


class Spy(torch.utils.data.Dataset):
    """Its labels are 1 in a process that has imported CUDA kernels or initialised CUDA."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        touched = torch.cuda.is_initialized() or "task2vec_ext.kernels.cuda" in sys.modules
        return Image.new("RGB", (12, 12), (200, 0, 255)), int(touched)
