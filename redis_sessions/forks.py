"""Notices a fork, so that a child forgets what is its parent's: connections, threads, and locks that a thread may hold.

`os.fork` and multiprocessing run Python's hooks. A fork in C code does not, as uWSGI's by default: it is noticed at the
child's next use of what it must not share. On Linux that takes no system call: the kernel empties a page of memory in each
child.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from typing import Any, Final

# Objects whose `forget` method is called once in every forked child, before it uses one of them.
forgetful: Final[weakref.WeakSet[Any]] = weakref.WeakSet()

# Of Linux 4.14, as a number since the module mmap has no name for it.
_MADV_WIPEONFORK: Final = 18


def _wiped_page() -> mmap.mmap | None:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (AttributeError, OSError, ValueError):
        return None
    page[0] = 1
    return page


_page: Final = _wiped_page()
_process = os.getpid()
_locks: dict[int, threading.RLock] = {}  # by process: a child's threads must not wait for one that a parent's thread holds


def process_id() -> int:
    """The ID of this process. If it was forked since the last call, what is its parent's has then been forgotten."""
    if not _page[0] if _page is not None else os.getpid() != _process:
        _forget()
    return _process


def _forget() -> None:
    global _process  # noqa: PLW0603 - there is one, as the objects are of it
    process = os.getpid()
    with _locks.setdefault(process, threading.RLock()):
        if process != _process:
            for each in list(forgetful):
                each.forget()
            _process = process
        if _page is not None:
            _page[0] = 1


os.register_at_fork(after_in_child=_forget)
