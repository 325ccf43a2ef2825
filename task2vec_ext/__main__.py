"""``python -m task2vec_ext`` is the command ``task2vec``."""

from .cli import main

main()
