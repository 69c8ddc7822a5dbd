"""Forks a process, with the hooks that Python runs for `os.fork` and without. No tests."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final

CHILD_DEADLINE_S = 20
# libc's is what code in C calls, as uWSGI's.
FORKS: Final[dict[str, Callable[[], int]]] = {"os.fork": os.fork, "libc": ctypes.PyDLL(None).fork}


def in_child(work: Callable[[], int], fork: Callable[[], int] = os.fork) -> int:
    """Fork, and have the child return the harm that it saw. Its process ID."""
    child = fork()
    if child == 0:
        harm = 100
        try:
            signal.alarm(CHILD_DEADLINE_S)
            harm = min(work(), 99)
        finally:
            os._exit(harm)
    return child


def harm_of(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
