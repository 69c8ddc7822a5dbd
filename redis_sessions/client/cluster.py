"""Cluster clients that a worker may build before the cluster is up, and take across a fork or into another event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import redis
import redis.asyncio

from redis_sessions.client.pool import BROKEN, Gate, reread
from redis_sessions.errors import SessionStoreError

_clusters: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork() -> None:
    for cluster in list(_clusters):
        cluster.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class Cluster(redis.RedisCluster):
    """A cluster client that asks for the slots at its first use, and at its first use after a fork.

    redis-py's own asks in its constructor, and its locks may be held by a thread that a forked child doesn't have.
    """

    def __init__(self, options: Callable[[], dict[str, Any]]) -> None:
        self._late_options = options
        self._late_lock = threading.RLock()
        self._late_busy = False
        self._late_ready = False
        _clusters.add(self)

    def after_fork(self) -> None:
        """Forget all that is the parent's, and keep it from being closed."""
        options = self._late_options
        _inherited.append(dict(self.__dict__))
        self.__dict__.clear()
        self.__init__(options)  # type: ignore[misc] # as if it had just been built

    def __getattr__(self, name: str) -> Any:
        # Reached only for what the real constructor has not set yet.
        if name.startswith(("__", "_late")):
            raise AttributeError(name)
        with self._late_lock:
            if name not in self.__dict__:
                if self._late_busy:
                    raise AttributeError(name)
                self._late_busy = True
                try:
                    super().__init__(**self._late_options())
                    self._late_ready = True
                finally:
                    self._late_busy = False
                    if not self._late_ready and "nodes_manager" in self.__dict__:
                        self.__dict__.pop("nodes_manager").close()
        return object.__getattribute__(self, name)

    def close(self) -> None:
        # What was never begun, or failed half-way, must not be begun by closing it.
        if self._late_ready:
            super().close()

    def __del__(self) -> None:
        self.close()


class AsyncCluster(redis.asyncio.RedisCluster):
    """A cluster client that belongs to the event loop of its first command, and to the next once that one is closed.

    In a second loop redis-py's own would write to connections that the first is reading from. And where a node has no
    connection left, redis-py's own pipelines take the cluster for changed, and drop their connections without closing them;
    so no more than `max_connections` calls are let in at once.
    """

    def __init__(self, max_connections: int, patience_s: float, options: Callable[[], dict[str, Any]]) -> None:
        self._own_gate = lambda: Gate(max_connections, patience_s)
        self._own_entered: set[Any] = set()
        # One more for a node, since asking for the slots is no call.
        self._own_options = lambda: options() | {"max_connections": max_connections + 1}
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._own_is_stale = False
        self._build()
        _clusters.add(self)

    def after_fork(self) -> None:
        """Forget the parent's connections at the next use, and keep them from being closed."""
        _inherited.append((self.nodes_manager, self.startup_nodes, self._own_loop))
        self._own_loop, self._own_is_stale = None, True

    def _build(self) -> None:
        super().__init__(**self._own_options())  # type: ignore[no-untyped-call]
        # What the nodes are made with as soon as they are known; the constructor takes no class.
        secure = issubclass(self.connection_kwargs["connection_class"], redis.asyncio.SSLConnection)
        self.connection_kwargs["connection_class"] = _SecureConnection if secure else _Connection

    def _settle(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is self._own_loop:
            return
        if self._own_loop is not None:
            if not self._own_loop.is_closed():
                raise SessionStoreError(
                    "this store belongs to another event loop, which still runs",
                    remedy="make one AsyncSessionStore for each event loop",
                )
            self._own_is_stale = True
        if self._own_is_stale:
            self._build()
        self._own_loop, self._own_is_stale = loop, False
        self._own_doors, self._own_entered = self._own_gate(), set()  # type: ignore[no-untyped-call]

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Let a call in when it is its turn, with the further ones that redis-py makes of it. Raises MaxConnectionsError."""
        self._settle()
        task = asyncio.current_task()
        if task in self._own_entered:
            yield
            return
        await self._own_doors.enter()
        self._own_entered.add(task)
        try:
            # redis-py would send a first command to any node, and take so many MOVED for a reason to hang up on everybody.
            await self.initialize()
            yield
        finally:
            self._own_entered.discard(task)
            self._own_doors.leave()

    async def initialize(self, *args: Any, **options: Any) -> Any:
        self._settle()
        return await super().initialize(*args, **options)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async with self.admitted():
            return await super().execute_command(*args, **options)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:  # noqa: ARG002 - redis-py's signature
        return _AsyncPipeline(self, transaction)  # type: ignore[abstract] # as redis-py's own

    async def aclose(self) -> None:
        if self._own_loop is asyncio.get_running_loop():
            await super().aclose()


class _Checked:
    """Goes before a connection class of redis-py: finds out before it sends whether the server has hung up."""

    _used_s: float | None = None

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        connection: Any = self
        if check_health and self._used_s is not None and connection.is_connected:
            idle_s = time.monotonic() - self._used_s
            try:
                await reread(connection, idle_s)
            except BROKEN:
                await connection.disconnect(nowait=True)
        await super().send_packed_command(command, check_health)  # type: ignore[misc] # the connection's
        self._used_s = time.monotonic()


class _Connection(_Checked, redis.asyncio.Connection):
    pass


class _SecureConnection(_Checked, redis.asyncio.SSLConnection):
    pass


class _AsyncPipeline(redis.asyncio.cluster.ClusterPipeline):
    cluster_client: AsyncCluster

    async def execute(self, *args: Any, **options: Any) -> Any:
        async with self.cluster_client.admitted():
            return await super().execute(*args, **options)
