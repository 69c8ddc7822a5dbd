"""Cluster clients that may be built before the cluster is up, and that wait when all connections are in use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import redis
import redis.asyncio

from redis_sessions.client.exchange import aexchange
from redis_sessions.client.pool import BROKEN, AdmissionLimit, CheckedConnection, add_endpoint, checked

_ASKING: Final = ("ASKING",)


class Cluster(redis.RedisCluster):
    """A cluster client that asks for the slots at its first use.

    redis-py up to 8.1 asks in the constructor (redis/redis-py #3311). `options` gives the arguments of that constructor.
    """

    def __init__(self, options: Callable[[], dict[str, Any]]) -> None:
        self.options = options
        self._start_lock = threading.RLock()
        self._starting = False
        self._started_in: int | None = None
        self._manager: Any = None

    def start(self) -> None:
        """Ask for the slots, unless that was done. Raises what redis-py does."""
        if self._started_in is not None:
            return
        with self._start_lock:
            if self._starting or self._started_in is not None:  # redis-py's constructor itself sends commands
                return
            self._starting = True
            try:
                super().__init__(**self.options())
                self._started_in = os.getpid()
            except Exception as error:
                add_endpoint(error)
                raise
            finally:
                self._starting = False
                if self._started_in is None and self._manager is not None:
                    self._manager.close()
                    self._manager = None

    @property
    def nodes_manager(self) -> Any:
        """redis-py's table of nodes and slots, which all of its methods look at."""
        self.start()
        return self._manager

    @nodes_manager.setter
    def nodes_manager(self, manager: Any) -> None:
        self._manager = manager

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.start()
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call] # redis-py's

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        self.start()
        return super().pipeline(transaction, shard_hint)  # type: ignore[no-untyped-call] # same

    def close(self) -> None:
        # In a forked child a lock of redis-py's may be held by a thread that is not there.
        if self._started_in == os.getpid():
            super().close()


class AsyncCluster(redis.asyncio.RedisCluster):
    """A cluster client that admits no more than `max_connections` calls at a time; the others wait for `patience_s`.

    redis-py up to 8.1 raises at once where a node has no connection left (redis/redis-py #3135), and its pipelines then take
    the cluster for changed, and drop their connections without closing them (#3684 is the same in the sync client).
    """

    def __init__(self, max_connections: int, patience_s: float, options: dict[str, Any]) -> None:
        # One more for each node, since asking for the slots is not a call.
        super().__init__(**options, max_connections=max_connections + 1)
        # What the nodes are made with as soon as they are known; the constructor takes no class.
        kind = checked(self.connection_kwargs["connection_class"], _CheckedBeforeSending)
        self.connection_kwargs["connection_class"] = kind
        for node in self.nodes_manager.startup_nodes.values():
            node.connection_class = kind
        self._limit = AdmissionLimit(max_connections, patience_s)
        self._admitted: set[Any] = set()

    @contextlib.asynccontextmanager
    async def admission(self) -> AsyncIterator[None]:
        """Wait for a place; the calls that redis-py makes for an admitted one share it. Raises MaxConnectionsError."""
        task = asyncio.current_task()
        if task in self._admitted:
            yield
            return
        await self._limit.enter()
        self._admitted.add(task)
        try:
            try:
                # redis-py would send a first command to any node, and be redirected. No upstream issue found (8.1).
                await self.initialize()
            except Exception as error:
                add_endpoint(error)
                raise
            yield
        finally:
            self._admitted.discard(task)
            self._limit.leave()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async with self.admission():
            return await super().execute_command(*args, **options)

    def get_node(self, host: str | None = None, port: int | None = None, node_name: str | None = None) -> Any:
        """As redis-py's, which asks by name for the node that a command is redirected to while its slot is migrated."""
        node = super().get_node(host, port, node_name)
        return node and _AskedNode(node) if node_name else node

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:  # noqa: ARG002 - redis-py's signature
        return _AsyncPipeline(self, transaction)  # type: ignore[abstract] # as redis-py's own


class _AskedNode:
    """A node of redis-py's that sends ASKING by the connection of the command that follows.

    redis-py up to 8.1 sends each by another one where several are idle, and the node, which was not asked there, sends the
    command back. No upstream issue found; redis/redis-py #4015 is about another fault of the same lines.
    """

    def __init__(self, node: Any) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    async def execute_command(self, *args: Any, asking: bool = False, **options: Any) -> Any:  # noqa: ARG002 - same
        if args == _ASKING:
            return None
        for reply in (replies := await aexchange(self._node, [(_ASKING, {}), (args, options)])):
            if isinstance(reply, Exception):
                raise reply
        return replies[-1]


class _AsyncPipeline(redis.asyncio.cluster.ClusterPipeline):
    cluster_client: AsyncCluster

    async def execute(self, *args: Any, **options: Any) -> Any:
        async with self.cluster_client.admission():
            return await super().execute(*args, **options)


class _CheckedBeforeSending(CheckedConnection):
    """The same, before each sending: a node of redis-py's asyncio cluster client has no pool that would check."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        connection: Any = self
        if check_health and self.used_s is not None and connection.is_connected:
            with contextlib.suppress(redis.ConnectionError):  # it has disconnected, and sending connects it again
                await connection.can_read()
        if not connection.is_connected:
            try:
                await connection.connect()
            except BROKEN as error:
                add_endpoint(error, self)
                raise
        await super().send_packed_command(command, check_health)
        self.used_s = time.monotonic()
