"""A library: the embeddings of many tasks in one folder, built without babysitting, and the nearest of them to a task.

======================  ============================================================================================
``index.sqlite``        the tasks, how far each is, what all embeddings were made with
``embeddings/*``        one `Embedding` each, as `Embedding.save` writes it
``matrix.f32``          F of all of them, ``[id, K]`` float32, from which `Library.nearest` reads
``shortlist.faiss``     only beyond 100,000 tasks: what finds the candidates
``lock``                held by the process that changes the library
======================  ============================================================================================

A task is first a file, then a row of the matrix, then done in the index, each on the disk before the next. A build that
was killed anywhere between goes on there: a file that the index does not know is taken up, not embedded again.
"""

from .build import build_library, embed_for
from .embeddings import EmbeddingFiles, load_embeddings
from .index import Entry
from .library import Library, Neighbour

__all__ = ["EmbeddingFiles", "Entry", "Library", "Neighbour", "build_library", "embed_for", "load_embeddings"]
