"""Cluster clients that a worker may build before the cluster is up, and take across a fork or into another event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio

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
                finally:
                    self._late_busy = False
        return object.__getattribute__(self, name)

    def close(self) -> None:
        if "nodes_manager" in self.__dict__:
            super().close()

    def __del__(self) -> None:
        self.close()


class AsyncCluster(redis.asyncio.RedisCluster):
    """A cluster client that belongs to the event loop of its first command, and to the next once that one is closed.

    In a second loop redis-py's own would write to connections that the first is reading from.
    """

    def __init__(self, options: Callable[[], dict[str, Any]]) -> None:
        self._own_options = options
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._own_is_stale = False
        super().__init__(**options())
        _clusters.add(self)

    def after_fork(self) -> None:
        """Forget the parent's connections at the next use, and keep them from being closed."""
        _inherited.append((self.nodes_manager, self.startup_nodes, self._own_loop))
        self._own_loop, self._own_is_stale = None, True

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
            super().__init__(**self._own_options())
        self._own_loop, self._own_is_stale = loop, False

    async def initialize(self, *args: Any, **options: Any) -> Any:
        self._settle()
        return await super().initialize(*args, **options)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        self._settle()
        return await super().execute_command(*args, **options)

    def pipeline(self, *args: Any, **options: Any) -> Any:
        self._settle()
        return super().pipeline(*args, **options)

    async def aclose(self) -> None:
        if self._own_loop is asyncio.get_running_loop():
            await super().aclose()
