"""Notices a fork, so that a child forgets what is its parent's: connections, threads, and locks that a thread may hold.

`os.fork` and multiprocessing run Python's hooks. A fork in C code does not, as uWSGI's by default: it is noticed at the
child's next use of what it must not share.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Final

# Objects whose `forget` method is called once in every forked child, before it uses one of them.
forgetful: Final[weakref.WeakSet[Any]] = weakref.WeakSet()

_known = os.getpid()
_locks: dict[int, threading.RLock] = {}  # by process: a child's threads must not wait for one that a parent's thread holds


def check_fork() -> None:
    """Have everything forgotten that is the parent's, if this process was forked since the last look."""
    if os.getpid() != _known:
        _forget()


def _forget() -> None:
    global _known  # noqa: PLW0603 - of the process, as the objects are
    process = os.getpid()
    with _locks.setdefault(process, threading.RLock()):
        if process != _known:
            for each in list(forgetful):
                each.forget()
            _known = process


os.register_at_fork(after_in_child=check_fork)
