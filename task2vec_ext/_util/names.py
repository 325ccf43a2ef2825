"""File names of tasks."""

from __future__ import annotations

import hashlib
import re


def safe_name(name: str) -> str:
    """Return a task's name as a file name that every file system takes.

    It consists of letters, digits, ``.``, ``-`` and ``_``, and is never empty, hidden or longer than 150 bytes.
    """
    name = re.sub(r"[^\w.-]+", "_", name).strip("._")
    return name.encode()[:150].decode(errors="ignore") or "task"


def file_name(name: str) -> str:
    """Return the file of a task's embedding in a library: `safe_name` with a hash, different for every name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe_name(name)}-{digest[:12]}.safetensors"
