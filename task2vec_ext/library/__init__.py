"""A library: the embeddings of many tasks in one folder, and the search for the nearest of them.

======================  ============================================================================================
``index.sqlite``        the tasks, their states, and the settings of all embeddings
``embeddings/*``        one `Embedding` each, as `Embedding.save` writes it
``matrix.f32``          F of all of them, ``[id, K]`` float32, from which `Library.nearest` reads
``shortlist.faiss``     only beyond 100,000 tasks: what finds the candidates
``lock``                held by the process that changes the library
======================  ============================================================================================

An embedding is written as a file, then as a row of the matrix, then the task is marked as done in the index; each is on
the disk before the next. A build that was killed in between continues there: a file that is not yet in the index is
added, and the task is not embedded again.
"""

from .build import build_library, embed_for
from .embeddings import EmbeddingFiles, load_embeddings
from .index import Entry
from .library import Library, Neighbour

__all__ = ["EmbeddingFiles", "Entry", "Library", "Neighbour", "build_library", "embed_for", "load_embeddings"]
