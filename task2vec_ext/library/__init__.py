"""A library: the embeddings of many tasks in one folder, and the search for the nearest of them.

==========================  ========================================================================================
``library.json``            what all embeddings are made with: probe and settings
``embeddings/*``            one `Embedding` each, as `Embedding.save` writes it
``failures/*.json``         a task that failed, and why
``cache/*``                 made from the embeddings, for speed; may be deleted at any time
==========================  ========================================================================================

The first three are the library. Every file appears whole, by a rename, and is never changed afterwards, so that any
number of processes may add tasks at once, without a lock, on all machines that see the folder. A build looks what is
there, embeds the rest, and can be killed at any time.
"""

from .build import build_library, embed_for
from .embeddings import EmbeddingFiles, load_embeddings
from .entry import Entry
from .hub import pull_library, push_library
from .library import Library, Neighbour
from .merge import merge_libraries

__all__ = [
    "EmbeddingFiles",
    "Entry",
    "Library",
    "Neighbour",
    "build_library",
    "embed_for",
    "load_embeddings",
    "merge_libraries",
    "pull_library",
    "push_library",
]
