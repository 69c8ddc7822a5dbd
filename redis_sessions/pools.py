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

_BROKEN: Final = (redis.ConnectionError, redis.TimeoutError, OSError)
# Idle for longer, a connection is first asked whether it still leads anywhere; and before that, a loop is given the chance
# to read that the server has hung up.
HEARD_OF_S: Final = 15.0
FRESH_S: Final = 0.1

_pools: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []


def _interrupted() -> bool:
    """Whether an exception that is not redis-py's own is on its way out, so that a reply may be left unread."""
    error = sys.exc_info()[1]
    return error is not None and not isinstance(error, redis.RedisError)


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
                    connection.send_command("PING", check_health=False)
                    connection.read_response()
            except _BROKEN:
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
        whole = connection in self._alive and not _interrupted() and not connection.should_reconnect()
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


class _Here:
    """The connections of one event loop: spare ones with the time they were given back, and all."""

    def __init__(self) -> None:
        self.spare: list[tuple[Any, float]] = []
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()


class _AsyncWhole:
    """Same as _Whole, for asyncio; `max_connections` is how many an event loop may have."""

    max_connections: int

    def __init__(self, *args: Any, **options: Any) -> None:
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
            here = self._loops[loop] = _Here()
        return here

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """Same as _Whole.get_connection."""
        here = self._here()
        if here.spare:
            connection, since_s = here.spare.pop()
            idle_s = time.monotonic() - since_s
        else:
            if len(here.alive) >= self.max_connections:
                raise redis.exceptions.MaxConnectionsError
            connection, idle_s = self.make_connection(), 0.0
            here.alive.add(connection)
        try:
            if idle_s > FRESH_S:
                # Two rounds: the first may have been under way when the server hung up.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            await connection.connect()
            try:
                if await connection.can_read():
                    raise redis.ConnectionError
                if idle_s > HEARD_OF_S:
                    await connection.send_command("PING", check_health=False)
                    await connection.read_response()
            except _BROKEN:
                await connection.disconnect(nowait=True)
                await connection.connect()
        except BaseException:
            await self._drop(here, connection)
            raise
        return connection

    def make_connection(self) -> Any:
        return super().make_connection()  # type: ignore[misc] # the pool's

    def release(self, connection: Any) -> Coroutine[Any, Any, None]:
        """Same as _Whole.release. No coroutine itself: a pipeline awaits it in another task, where no exception passes."""
        return self._release(connection, whole=not _interrupted() and not connection.should_reconnect())

    async def _release(self, connection: Any, *, whole: bool) -> None:
        here = self._here()
        if whole and connection in here.alive:
            here.spare.append((connection, time.monotonic()))
        else:
            await self._drop(here, connection)

    async def _drop(self, here: _Here, connection: Any) -> None:
        here.alive.discard(connection)
        await connection.disconnect(nowait=True)

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        """Same as _Whole.disconnect, for the connections of the running loop."""
        here = self._here()
        spare, here.spare = here.spare, []
        for connection, _ in spare:
            here.alive.discard(connection)
            await connection.disconnect()
        if inuse_connections:
            for connection in list(here.alive):
                await connection.disconnect()


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
