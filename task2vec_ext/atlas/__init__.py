"""The atlas: one page on which to browse a library's tasks; it opens from the disk, without network or server."""

from .write import write_atlas

__all__ = ["write_atlas"]
