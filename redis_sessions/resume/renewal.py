"""Keeps the leases of running turns: each is renewed every third of its time until its turn is over.

Sync turns of a store share one thread, started by the first of them and gone when a third of a lease has passed without
any. Whoever renews leaves the watch to another thread, so that one server that hangs delays no other conversation's
renewal. In asyncio each lease has a timer. After a fork the child has neither, so it renews nothing of its parent's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from redis_sessions.errors import SessionStoreError
from redis_sessions.operations.command import Op
from redis_sessions.operations.conversation import Lease, Operations

log = logging.getLogger("redis_sessions")

T = TypeVar("T")


class Execute(Protocol):
    """Drives one operation to its result, as SessionStore does on its client."""

    def __call__(self, op: Op[T], /) -> T: ...


class AsyncExecute(Protocol):
    """Same as Execute, awaited."""

    def __call__(self, op: Op[T], /) -> Coroutine[Any, Any, T]: ...


class Keeper:
    """The leases that one store keeps: `with keeper.kept(lease): …`."""

    def __init__(self, ops: Operations, execute: Execute) -> None:
        self.ops = ops
        self.execute = execute
        self._watch = _Watch(self)

    def kept(self, lease: Lease) -> _Kept:
        if self._watch.pid != os.getpid():
            self._watch = _Watch(self)
        return _Kept(lease, self._watch)


class _Kept:
    """A lease in the keeping of a watch. `over` says that its turn has ended; `due_s` is when it is renewed next.

    The turn alone holds it: after a signal that hits the way in or out, nobody may be left to say that the turn is over.
    """

    __slots__ = ("__weakref__", "_watch", "due_s", "lease", "over")

    def __init__(self, lease: Lease, watch: _Watch) -> None:
        self.lease = lease
        self.over = False
        self.due_s = 0.0
        self._watch = watch

    def __enter__(self) -> None:
        self._watch.add(self)

    def __exit__(self, *_: object) -> None:
        self.over = True
        self._watch.remove(self)


class _Watch:
    """The leases of one process, the next to be renewed first, and the thread that waits for it."""

    def __init__(self, keeper: Keeper) -> None:
        self.pid = os.getpid()
        self._keeper = keeper
        self._pause_s = _pause_s(keeper.ops)
        self._lock = threading.Lock()
        # All pause for the same time, so the one that was put in last is due last.
        self._kept: OrderedDict[str, weakref.ref[_Kept]] = OrderedDict()
        self._watcher: threading.Thread | None = None

    def add(self, kept: _Kept) -> None:
        kept.due_s = time.monotonic() + self._pause_s
        with self._lock:
            self._kept[kept.lease.token] = weakref.ref(kept)
            # One that was made and not started, by an interrupt between the two, is not alive either.
            if self._watcher is None or not self._watcher.is_alive():
                self._start_watcher()

    def remove(self, kept: _Kept) -> None:
        # A child that was forked in the middle of a turn may have inherited the lock as somebody held it.
        if self.pid == os.getpid():
            with self._lock:
                self._kept.pop(kept.lease.token, None)

    def _start_watcher(self) -> None:
        # A daemon, and never waited for: a renewal that hangs must hold up neither a turn's result nor the way out.
        self._watcher = threading.Thread(target=self._run, name="redis-sessions leases", daemon=True)
        self._watcher.start()

    def _run(self) -> None:
        me = threading.current_thread()
        until_s = 0.0
        while True:
            time.sleep(max(0.0, until_s - time.monotonic()))
            with self._lock:
                if not self._kept:
                    self._watcher = None
                    return
                token, reference = next(iter(self._kept.items()))
                kept = reference()
                if kept is not None and kept.due_s > time.monotonic():
                    until_s, kept = kept.due_s, None
                    continue
                del self._kept[token]
                if kept is None:
                    continue
                self._watcher = None
                if self._kept:
                    self._start_watcher()
            go_on = _note(kept.lease, self._renew(kept.lease), over=kept.over)
            kept.due_s = time.monotonic() + self._pause_s
            with self._lock:
                if go_on and not kept.over:
                    self._kept[token] = reference
                kept = None
                if self._watcher is not None:
                    return
                self._watcher = me

    def _renew(self, lease: Lease) -> bool | Exception:
        try:
            return self._keeper.execute(self._keeper.ops.renew(lease))
        except Exception as error:  # noqa: BLE001 - whatever it was, the next third of the lease gets another try
            return error


class AsyncKept:
    """Keeps one lease: `async with AsyncKept(ops, execute, lease): …`."""

    def __init__(self, ops: Operations, execute: AsyncExecute, lease: Lease) -> None:
        self._ops = ops
        self._execute = execute
        self._lease = lease
        self._over = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._set_timer()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Asked after each renewal, since a cancellation that comes just as a reply does can get lost in the client.
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(_pause_s(self._ops), self._begin)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._renew())

    async def _renew(self) -> None:
        outcome: bool | Exception
        try:
            outcome = await self._execute(self._ops.renew(self._lease))
        except Exception as error:  # noqa: BLE001 - whatever it was, the next third of the lease gets another try
            outcome = error
        if _note(self._lease, outcome, over=self._over) and not self._over:
            self._set_timer()


def _pause_s(ops: Operations) -> float:
    return ops.settings.lease_ms / 3000


def _note(lease: Lease, outcome: object, *, over: bool) -> bool:
    """Say how a renewal went, where that matters; whether another is to follow."""
    if outcome is True or over:
        return True
    if outcome is False:
        log.error("conversation %r was taken over while its turn runs on", lease.key)
        return False
    log.warning(
        "lease of %r was not renewed: %s", lease.key, outcome if isinstance(outcome, SessionStoreError) else repr(outcome)
    )
    return True
