"""Ctrl-C while the command line is still being imported, which takes a second, and signals that have to wait."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal."""


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """End the command in one line if Ctrl-C ends the imports in the block; other programs get their exception."""
    try:
        yield
    except KeyboardInterrupt:
        script = os.path.splitext(os.path.basename(sys.argv[0]))[0] if sys.argv else ""
        if script != "task2vec" and ("-m", "task2vec_ext") not in pairwise(sys.orig_argv):
            raise
        print("\ntask2vec: interrupted; nothing was written", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # half of the modules are there


@contextmanager
def signals_held() -> Iterator[None]:
    """Let SIGINT and SIGTERM take effect at the end of the block; without effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in came:
            signal.raise_signal(late)
