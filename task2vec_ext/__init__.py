"""Task2Vec: turn an image data set into a vector, the per-filter Fisher information of a fixed probe."""

import lazy_loader

# The names are those of __init__.pyi. `task2vec --help` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
