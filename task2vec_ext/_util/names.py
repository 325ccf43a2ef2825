"""File names of tasks."""

from __future__ import annotations

import re


def safe_name(name: str) -> str:
    """Return a task's name as a file name that every file system takes.

    It consists of letters, digits, ``.``, ``-`` and ``_``, and is never empty, hidden or longer than 150 bytes.
    """
    name = re.sub(r"[^\w.-]+", "_", name).strip("._")
    return name.encode()[:150].decode(errors="ignore") or "task"
