"""Connection pools that give out whole connections only, whatever interrupted, forked, or went idle before.

redis-py's own keep a connection that a signal has torn out of a call: either its place in the pool is lost for good, or it
comes back with a reply unread, and the next call gets the answer to somebody else's question. Here a connection is spare
once its call has ended in order, and in every other case it is dropped; those in use are held weakly, so that one that was
lost gives its place back. What a forked child inherits it never touches, and each event loop has connections of its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import weakref
from collections.abc import Coroutine
from typing import Any, Final

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

from redis_sessions.client.connection import aask, ask

BROKEN: Final = (redis.ConnectionError, redis.TimeoutError, OSError)
# Idle for longer, a connection is first asked whether it still leads anywhere; and before that, a loop is given the chance
# to read that the server has hung up.
HEARD_OF_S: Final = 15.0
FRESH_S: Final = 0.1

_pools: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []


def _spoilt() -> bool:
    """Whether what is on its way out makes a connection useless for the next call.

    Only the server's own refusals leave it as it was; anything else may have left a reply unread. And a server that has
    become read-only is no longer the primary, so its name is to be looked up anew.
    """
    error = sys.exc_info()[1]
    return error is not None and (not isinstance(error, redis.ResponseError) or isinstance(error, redis.ReadOnlyError))


def _after_fork() -> None:
    for pool in list(_pools):
        pool.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class _Whole:
    """Goes before a pool class of redis-py, and replaces how it lends."""

    pid: int
    max_connections: int
    connection_class: Any
    connection_kwargs: dict[str, Any]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc] # the pool's
        self._forget()
        _pools.add(self)

    def _forget(self) -> None:
        self._making = threading.RLock()
        self._spare: list[tuple[Any, float]] = []
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.pid = os.getpid()

    def after_fork(self) -> None:
        """Start anew in a forked child. The parent's connections are kept from being closed, which the parent might see."""
        _inherited.append((self._spare, list(self._alive)))
        self._forget()

    def get_connection(self, *_: Any, **__: Any) -> Any:
        """A connection that is connected, has nothing to read, and was heard of lately."""
        try:
            connection, since_s = self._spare.pop()
            idle_s = time.monotonic() - since_s
        except IndexError:
            connection, idle_s = self._make(), 0.0
        try:
            connection.connect()
            try:
                if connection.can_read():
                    raise redis.ConnectionError
                if idle_s > HEARD_OF_S:
                    ask(connection)
            except BROKEN:
                connection.disconnect()
                connection.connect()
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _make(self) -> Any:
        with self._making:
            if len(self._alive) >= self.max_connections:
                raise redis.exceptions.MaxConnectionsError
            connection = self.connection_class(**self.connection_kwargs)
            self._alive.add(connection)
        return connection

    def release(self, connection: Any) -> None:
        """Keep it for the next call if this one ended in order."""
        whole = connection in self._alive and not _spoilt() and not connection.should_reconnect()
        if whole and self.owns_connection(connection):
            self._spare.append((connection, time.monotonic()))
        else:
            self._drop(connection)

    def owns_connection(self, connection: Any) -> bool:
        return bool(super().owns_connection(connection))  # type: ignore[misc] # the pool's

    def _drop(self, connection: Any) -> None:
        self._alive.discard(connection)
        connection.disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        """Drop the spare connections, and close those in use if asked."""
        spare, self._spare = self._spare, []
        for connection, _ in spare:
            self._drop(connection)
        if inuse_connections:
            with self._making:
                alive = list(self._alive)
            for connection in alive:
                connection.disconnect()

    def update_active_connections_for_reconnect(self) -> None:
        """Let those in use end their call, and no further one."""
        with self._making:
            alive = list(self._alive)
        for connection in alive:
            connection.mark_for_reconnect()

    def disconnect_free_connections(self) -> None:
        self.disconnect(inuse_connections=False)


async def reread(connection: Any, idle_s: float) -> None:
    """Look whether a connection is still open, has nothing to read, and leads anywhere. Raises one of BROKEN if not."""
    if idle_s > FRESH_S:
        # Two rounds: the first may have been under way when the server hung up.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    if await connection.can_read():
        raise redis.ConnectionError
    if idle_s > HEARD_OF_S:
        await aask(connection)


class Gate:
    """Lets so many in at once, and the others in the order in which they came."""

    def __init__(self, places: int, patience_s: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._patience_s = patience_s

    async def enter(self) -> None:
        """Wait for a place. Raises MaxConnectionsError when patience ends."""
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(self._patience_s):
                await self._places.acquire()
        except TimeoutError:
            raise redis.exceptions.MaxConnectionsError from None

    def leave(self) -> None:
        self._places.release()


class _Here:
    """The connections of one event loop: spare ones with the time they were given back, and those in use."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.spare: list[tuple[Any, float]] = []
        self.lent: set[Any] = set()


class _AsyncWhole:
    """Same as _Whole, for asyncio, where nothing is lost between two awaits.

    An event loop may have `max_connections`; who finds all in use waits for `patience_s`.
    """

    max_connections: int

    def __init__(self, *args: Any, patience_s: float = 5.0, **options: Any) -> None:
        self._patience_s = patience_s
        self._loops: dict[asyncio.AbstractEventLoop, _Here] = {}
        super().__init__(*args, **options)
        _pools.add(self)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc] # the pool's
        self._loops = {}

    def after_fork(self) -> None:
        """Same as _Whole.after_fork; closing one would also end the parent's wait for it, in the epoll that both share."""
        _inherited.append(self._loops)
        self._loops = {}

    def _here(self) -> _Here:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            self._loops = {other: its for other, its in self._loops.items() if not other.is_closed()}
            here = self._loops[loop] = _Here(Gate(self.max_connections, self._patience_s))
        return here

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """Same as _Whole.get_connection."""
        here = self._here()
        await here.gate.enter()
        idle_s = 0.0
        if here.spare:
            connection, since_s = here.spare.pop()
            idle_s = time.monotonic() - since_s
        else:
            connection = self.make_connection()
        here.lent.add(connection)
        try:
            await connection.connect()
            try:
                await reread(connection, idle_s)
            except BROKEN:
                await connection.disconnect(nowait=True)
                await connection.connect()
        except BaseException:
            self._take_back(here, connection, whole=False)
            await connection.disconnect(nowait=True)
            raise
        return connection

    def make_connection(self) -> Any:
        return super().make_connection()  # type: ignore[misc] # the pool's

    def release(self, connection: Any) -> Coroutine[Any, Any, None]:
        """Same as _Whole.release. No coroutine itself: a pipeline awaits it in another task, where no exception passes."""
        whole = not _spoilt() and not connection.should_reconnect()
        return _nothing() if self._take_back(self._here(), connection, whole=whole) else connection.disconnect(nowait=True)

    def _take_back(self, here: _Here, connection: Any, *, whole: bool) -> bool:
        known = connection in here.lent
        if known:
            here.lent.discard(connection)
            here.gate.leave()
            if whole:
                here.spare.append((connection, time.monotonic()))
        return known and whole

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        """Same as _Whole.disconnect, for the connections of the running loop."""
        here = self._here()
        spare, here.spare = here.spare, []
        for connection, _ in spare:
            await connection.disconnect()
        if inuse_connections:
            for connection in list(here.lent):
                await connection.disconnect()


async def _nothing() -> None:
    pass


class Pool(_Whole, redis.ConnectionPool):  # type: ignore[misc] # untyped there
    """For a standalone server, or for one node of a cluster."""


class SentinelPool(_Whole, redis.sentinel.SentinelConnectionPool):  # type: ignore[misc] # likewise
    """For the primary that Sentinel names."""


class AsyncPool(_AsyncWhole, redis.asyncio.ConnectionPool):
    """Same as Pool, for asyncio."""


class AsyncSentinelPool(_AsyncWhole, redis.asyncio.sentinel.SentinelConnectionPool):
    """Same as SentinelPool, for asyncio."""


def is_whole(pool: object) -> bool:
    """Whether a pool is of one of these kinds."""
    return isinstance(pool, _Whole | _AsyncWhole)
