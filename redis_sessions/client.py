"""How a safe redis-py client is built, measured against redis-py 8.1.

- Maintenance notifications are off: with them on, the pool skips its check for unread data, and a connection given back
  halfway hands one conversation's session ID to another.
- A connection that is released while a foreign exception passes (a signal, a cancellation) is closed, not reused.
- Nothing is retried inside redis-py: it can't tell INCR from GET. `wire.py` sends again what may be sent twice, until a
  deadline. On a cluster and behind Sentinel that rides out a failover.
- Timeouts are short, replies stay bytes, and nothing but HELLO is said at connect.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from redis_sessions.connections import (
    AsyncTLSConnection,
    AsyncTLSSentinel,
    AsyncWatched,
    TLSConnection,
    TLSSentinel,
    Watched,
)
from redis_sessions.errors import InvalidSettings
from redis_sessions.settings import StoreSettings
from redis_sessions.urls import Target
from redis_sessions.wire import Link

SyncClient: TypeAlias = redis.Redis | redis.RedisCluster
AsyncClient: TypeAlias = redis.asyncio.Redis | redis.asyncio.RedisCluster

log = logging.getLogger("redis_sessions")

_told: set[str] = set()
_HEALTH_CHECK_INTERVAL_S = 15
# Standalone: three tries within about a second when refused; a server that failed over comes back within seconds.
_STANDALONE_ATTEMPTS = 3
_FAILOVER_ATTEMPTS = 1_000


def _interrupted() -> bool:
    """Whether an exception that is not redis-py's own is on its way out, so that a reply may be left unread."""
    error = sys.exc_info()[1]
    return error is not None and not isinstance(error, redis.RedisError)


class _Guard:
    """Closes a connection that is given back half-way; goes before a pool class."""

    def release(self, connection: Any) -> None:
        if _interrupted():
            connection.disconnect()
        super().release(connection)  # type: ignore[misc] # the pool's


class _AsyncGuard:
    """Same as _Guard, for asyncio."""

    async def release(self, connection: Any) -> None:
        if _interrupted():
            await connection.disconnect(nowait=True)
        await super().release(connection)  # type: ignore[misc] # the pool's


class _Pool(_Guard, redis.ConnectionPool):
    pass


class _AsyncPool(_AsyncGuard, redis.asyncio.ConnectionPool):
    pass


class _SentinelPool(_Guard, redis.sentinel.SentinelConnectionPool):
    pass


class _AsyncSentinelPool(_AsyncGuard, redis.asyncio.sentinel.SentinelConnectionPool):
    pass


class _LazyCluster(redis.RedisCluster):
    """A cluster client that asks for the slots at its first use, so that a worker can start while the cluster is away.

    redis-py's own asks in its constructor; its async one is lazy already.
    """

    def __init__(self, **options: Any) -> None:
        self._late_options = options
        self._late_lock = threading.RLock()
        self._late_busy = False
        self._late_ready = False

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
                    super().__init__(**self._late_options)
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


def connect(target: Target, settings: StoreSettings) -> SyncClient:
    """A sync client for the target, which connects at its first command."""
    options = _options(target, settings) | {"retry": redis.retry.Retry(NoBackoff(), 0)}
    if target.kind == "cluster":
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in target.hosts]
        return _LazyCluster(
            # Given a URL, and only then, redis-py makes the pools of all nodes of our class.
            url=_url(*target.hosts[0]),
            startup_nodes=nodes,
            connection_pool_class=_Pool,
            connection_class=redis.SSLConnection if target.tls else redis.Connection,
            max_connections=settings.max_connections,
            **_tls_files(target),
            **options,
        )
    options |= {"db": target.database}
    if target.kind == "sentinel":
        kind: Any = TLSSentinel if target.tls else redis.sentinel.Sentinel
        sentinel = kind(list(target.hosts), sentinel_kwargs=_watchers(options) | _tls(target))
        client: SyncClient = sentinel.master_for(
            target.service, redis_class=Watched, connection_pool_class=_SentinelPool, **_tls(target), **options
        )
        return client
    connection = {
        "unix": redis.UnixDomainSocketConnection,
        "standalone": TLSConnection if target.tls else redis.Connection,
    }[target.kind]
    return redis.Redis.from_pool(
        _Pool(
            connection_class=connection,
            max_connections=settings.max_connections,
            **_place(target),
            **options,
        )
    )


def aconnect(target: Target, settings: StoreSettings) -> AsyncClient:
    """Same as connect, for asyncio."""
    options = _options(target, settings) | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
    if target.kind == "cluster":
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in target.hosts]
        return redis.asyncio.RedisCluster(
            startup_nodes=nodes,
            max_connections=settings.max_connections,
            **_tls(target),
            **options,
        )
    options |= {"db": target.database}
    if target.kind == "sentinel":
        kind: Any = AsyncTLSSentinel if target.tls else redis.asyncio.sentinel.Sentinel
        sentinel = kind(list(target.hosts), sentinel_kwargs=_watchers(options) | _tls(target))
        client: AsyncClient = sentinel.master_for(
            target.service,
            redis_class=AsyncWatched,
            connection_pool_class=_AsyncSentinelPool,
            **_tls(target),
            **options,
        )
        return client
    connection = {
        "unix": redis.asyncio.UnixDomainSocketConnection,
        "standalone": AsyncTLSConnection if target.tls else redis.asyncio.Connection,
    }[target.kind]
    return redis.asyncio.Redis.from_pool(
        _AsyncPool(
            connection_class=connection,
            max_connections=settings.max_connections,
            **_place(target),
            **options,
        )
    )


def link(target: Target, settings: StoreSettings) -> Link:
    """How the wire is to treat a client that this module built."""
    slack_s = settings.socket_timeout_ms / 1000
    return Link(
        address=target.address,
        attempts=_STANDALONE_ATTEMPTS if target.kind in ("standalone", "unix") else _FAILOVER_ATTEMPTS,
        deadline_s=max(0.0, settings.deadline_ms / 1000 - slack_s),
    )


def callers_link(client: Any) -> Link:
    """How the wire is to treat a client that the caller built: its own retries apply. What is risky in it is logged once."""
    for risk in _risks(client):
        if risk not in _told:
            _told.add(risk)
            log.warning("the redis-py client that was passed in %s; SessionStore.from_url builds one that is safe", risk)
    return Link(client_resends=_resends(client))


def _resends(client: Any) -> bool:
    retry = client.get_retry() if hasattr(client, "get_retry") else getattr(client, "retry", None)
    return retry is not None and retry.get_retries() > 0


def _risks(client: Any) -> Iterator[str]:
    if _resends(client):
        yield "retries by itself, INCR too: a counter may count a lost reply twice"
    pool: Any = getattr(client, "connection_pool", None)
    if hasattr(pool, "maint_notifications_enabled") and pool.maint_notifications_enabled():
        yield "has maintenance notifications on: after an interrupted call one conversation may get another's session ID"


def _options(target: Target, settings: StoreSettings) -> dict[str, Any]:
    return {
        "username": target.username,
        "password": target.password,
        "socket_timeout": settings.socket_timeout_ms / 1000,
        "socket_connect_timeout": settings.connect_timeout_ms / 1000,
        "health_check_interval": _HEALTH_CHECK_INTERVAL_S,
        "driver_info": None,
        "protocol": 3,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _watchers(options: dict[str, Any]) -> dict[str, Any]:
    """How Sentinel's processes are asked: as the primary is, but for user, password and database, which are its alone."""
    return {name: value for name, value in options.items() if name not in ("username", "password", "db")}


def _place(target: Target) -> dict[str, Any]:
    if target.kind == "unix":
        return {"path": target.path}
    [(host, port)] = target.hosts
    return {"host": host, "port": port, **_tls_files(target)}


def _url(host: str, port: int) -> str:
    return f"redis://[{host}]:{port}" if ":" in host else f"redis://{quote(host, safe='')}:{port}"


def _tls(target: Target) -> dict[str, Any]:
    return {"ssl": True, **_tls_files(target)} if target.tls else {}


def _tls_files(target: Target) -> dict[str, str]:
    """The files of TLS. Raises InvalidSettings for one that can't be read, which no other try would mend."""
    for option, path in target.tls_files.items():
        try:
            with Path(path).open("rb"):
                pass
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "no path"
            raise InvalidSettings(
                f"the file that {option} names in the store's URL can't be read ({why})", remedy="name a readable PEM file"
            ) from None
    return dict(target.tls_files)
