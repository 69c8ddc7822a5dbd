"""Notices a fork, so that a child forgets what is its parent's: connections, threads, and locks that a thread may hold.

`os.fork` and multiprocessing run Python's hooks. A fork in C code does not, as uWSGI's by default: it is noticed at the
child's next use of what it must not share, without a system call where the kernel empties a page of memory in a child.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref
from typing import Any, Final

# Objects whose `forget` method is called once in every forked child, before it uses one of them.
forgetful: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
# Of Linux 4.14, as a number since the module mmap has no name for it.
_MADV_WIPEONFORK: Final = 18


class ProcessMark:
    """Item 0 is true in the process that set it: for kernels that empty no page."""

    _pid = 0

    def __getitem__(self, _: int) -> bool:
        return self._pid == os.getpid()

    def __setitem__(self, _: int, __: int) -> None:
        self._pid = os.getpid()


def _mark() -> Any:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
        return page
    return ProcessMark()


_known = _mark()
_known[0] = 1
_locks: dict[int, threading.RLock] = {}  # by process: a child's threads must not wait for one that a parent's thread holds


def check_fork() -> None:
    """Have everything forgotten that is the parent's, if this process was forked since the last look."""
    if not _known[0]:
        _forget()


def _forget() -> None:
    with _locks.setdefault(os.getpid(), threading.RLock()):
        if not _known[0]:
            for each in list(forgetful):
                each.forget()
            _known[0] = 1


os.register_at_fork(after_in_child=check_fork)
