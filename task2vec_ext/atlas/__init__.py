"""The atlas: one HTML page on which to browse tasks. It opens from the disk, without a network or a server."""

from .write import write_atlas

__all__ = ["write_atlas"]
