"""Forks a process, with the hooks that Python runs for `os.fork` and without. No tests."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import Any, Final

CHILD_DEADLINE_S = 20
# libc's is what code in C calls, as uWSGI's.
FORKS: Final[dict[str, Callable[[], int]]] = {"os.fork": os.fork, "libc": ctypes.PyDLL(None).fork}


def in_child(work: Callable[[], int], fork: Callable[[], int] = os.fork) -> int:
    """Fork, and have the child return the harm that it saw. Its process ID."""
    child = fork()
    if child == 0:
        harm = 100
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(CHILD_DEADLINE_S)
            harm = min(work(), 99)
        finally:
            os._exit(harm)
    return child


def harm_of(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Have a test run in a forked process, which has one thread.

    Where others wait for the interpreter's lock as a process forks without Python's hooks, the child's may never be given:
    a library can't change that.
    """

    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of a fork beside threads
            child = os.fork()
        if child == 0:
            failed = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(3 * CHILD_DEADLINE_S)
                test(*args, **options)
                failed = 0
            except BaseException:  # noqa: BLE001 - shown, and told by the exit code
                traceback.print_exc()
            finally:
                os._exit(failed)
        assert harm_of(child) == 0, "see stderr"

    return run
