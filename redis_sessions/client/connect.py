"""How a safe redis-py client is built, measured against redis-py 8.1.

- Its pools give out whole connections only (`pools.py`): whatever a signal, a cancellation or a fork tore apart is dropped.
- Maintenance notifications are off: with them on, the pool skips its check for unread data, and a connection given back
  halfway hands one conversation's session ID to another.
- Nothing is retried inside redis-py: it can't tell INCR from GET. `exchange.py` sends again what may be sent twice, until a
  deadline. On a cluster and behind Sentinel that rides out a failover.
- Timeouts are short, replies stay bytes. RESP2, since the RESP3 greeting holds an integer, and a signal handler that raises
  while hiredis renders one crashes the process; so nothing is said at connect but AUTH and SELECT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from redis_sessions.client import callers as risks
from redis_sessions.client.cluster import AsyncCluster, Cluster
from redis_sessions.client.connection import AsyncTLSConnection, AsyncWatched, TLSConnection, Watched
from redis_sessions.client.execute import Link
from redis_sessions.client.pool import AsyncPool, Pool
from redis_sessions.client.sentinel import AsyncPrimaryPool, AsyncSentinel, PrimaryPool, Sentinel
from redis_sessions.client.url import Target
from redis_sessions.errors import InvalidSettings
from redis_sessions.settings import StoreSettings

SyncClient: TypeAlias = redis.Redis | redis.RedisCluster
AsyncClient: TypeAlias = redis.asyncio.Redis | redis.asyncio.RedisCluster

# Standalone: three tries within about a second when refused; a server that failed over comes back within seconds.
_STANDALONE_ATTEMPTS = 3
_FAILOVER_ATTEMPTS = 1_000


def connect(target: Target, settings: StoreSettings) -> SyncClient:
    """A sync client for the target, which connects at its first command."""
    options = _options(target, settings) | {"retry": redis.retry.Retry(NoBackoff(), 0)}
    if target.kind == "cluster":
        _tls_files(target)
        return Cluster(lambda: _startup(target) | options | {"connection_pool_class": Pool})
    options |= {"db": _database(target)}
    if target.kind == "sentinel":
        sentinel = Sentinel([])
        sentinel.sentinels = [redis.Redis.from_pool(Pool(**watcher)) for watcher in _watchers(target, options, redis)]
        client: SyncClient = sentinel.master_for(  # type: ignore[no-untyped-call] # redis-py's
            target.service, redis_class=Watched, connection_pool_class=PrimaryPool, **_tls(target), **options
        )
        return client
    connection = {
        "unix": redis.UnixDomainSocketConnection,
        "standalone": TLSConnection if target.tls else redis.Connection,
    }[target.kind]
    return redis.Redis.from_pool(
        Pool(
            connection_class=connection,
            **_place(target),
            **options,
        )
    )


def aconnect(target: Target, settings: StoreSettings) -> AsyncClient:
    """Same as connect, for asyncio."""
    options = _options(target, settings) | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
    patience_s = settings.deadline_ms / 1000
    if target.kind == "cluster":
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in target.hosts]
        # Every so many MOVED redis-py would hang up on all calls that are under way; each tells where its slot is anyway.
        shared = options | _tls(target) | {"reinitialize_steps": 0}
        return AsyncCluster(settings.max_connections, patience_s, lambda: shared | {"startup_nodes": nodes})
    options |= {"db": _database(target), "patience_s": patience_s}
    if target.kind == "sentinel":
        sentinel = AsyncSentinel([])
        sentinel.sentinels = [
            redis.asyncio.Redis.from_pool(AsyncPool(**watcher)) for watcher in _watchers(target, options, redis.asyncio)
        ]
        client: AsyncClient = sentinel.master_for(
            target.service,
            redis_class=AsyncWatched,
            connection_pool_class=AsyncPrimaryPool,
            **_tls(target),
            **options,
        )
        return client
    connection = {
        "unix": redis.asyncio.UnixDomainSocketConnection,
        "standalone": AsyncTLSConnection if target.tls else redis.asyncio.Connection,
    }[target.kind]
    return redis.asyncio.Redis.from_pool(
        AsyncPool(
            connection_class=connection,
            **_place(target),
            **options,
        )
    )


def link(target: Target, settings: StoreSettings) -> Link:
    """How the wire is to treat a client that this module built."""
    return Link(
        address=target.address,
        attempts=_STANDALONE_ATTEMPTS if target.kind in ("standalone", "unix") else _FAILOVER_ATTEMPTS,
        deadline_s=settings.deadline_ms / 1000,
        cluster=target.kind == "cluster",
        tls=target.tls,
        risks=(),
    )


def callers_link(client: Any, *, awaits: bool) -> Link:
    """How the wire is to treat a client that the caller built: its own retries apply. What is risky in it is logged once.

    Raises TypeError for what is no client, or one of the other flavour.
    """
    store, other = ("AsyncSessionStore", "SessionStore") if awaits else ("SessionStore", "AsyncSessionStore")
    if isinstance(client, SyncClient if awaits else AsyncClient):
        raise TypeError(f"{store} takes {'an async' if awaits else 'a sync'} redis-py client: give this one to {other}")
    if not callable(getattr(client, "execute_command", None)):
        # What it is may be a URL with a password, so only its type is shown.
        raise TypeError(f"{store} takes a redis-py client, not a {type(client).__name__}: {store}.from_url(url) makes one")
    risks.tell(client)
    return Link(
        cluster=hasattr(client, "get_primaries"),
        client_resends=risks.resends(client),
        tls=risks.speaks_tls(client),
        risks=risks.known(client),
    )


def sentinels(client: Any) -> list[tuple[Any, str]]:
    """Clients of the Sentinel processes behind a client, each with the name of what it watches."""
    # A cluster client would be begun by asking it for what it has not got.
    pool = client.connection_pool if isinstance(client, redis.Redis | redis.asyncio.Redis) else None
    if not isinstance(pool, redis.sentinel.SentinelConnectionPool | redis.asyncio.sentinel.SentinelConnectionPool):
        return []
    return [(sentinel, pool.service_name) for sentinel in pool.sentinel_manager.sentinels]


def _options(target: Target, settings: StoreSettings) -> dict[str, Any]:
    return {
        "username": target.username,
        "password": target.password,
        "socket_timeout": settings.socket_timeout_ms / 1000,
        "socket_connect_timeout": settings.connect_timeout_ms / 1000,
        "driver_info": None,
        "protocol": 2,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "max_connections": settings.max_connections,
    }


def _startup(target: Target) -> dict[str, Any]:
    """Where a sync cluster client begins. Only for one with a URL does redis-py heed `connection_pool_class`."""
    nodes = [redis.cluster.ClusterNode(host, port) for host, port in target.hosts]
    host, port = target.hosts[0]
    place = f"[{host}]" if ":" in host else quote(host, safe="")
    url = f"{'rediss' if target.tls else 'redis'}://{place}:{port}"
    return {"startup_nodes": nodes, "url": url, **_tls_files(target)}


def _database(target: Target) -> str | int:
    """As text, since it is sent as it stands: see the top for what an integer can do."""
    return str(target.database) if target.database else 0


def _watchers(target: Target, options: dict[str, Any], flavour: Any) -> list[dict[str, Any]]:
    """How Sentinel's processes are asked: as the primary is, but for user, password and database, which are its alone."""
    shared = {name: value for name, value in options.items() if name not in ("username", "password", "db")}
    shared |= {"connection_class": flavour.SSLConnection if target.tls else flavour.Connection, **_tls_files(target)}
    return [{"host": host, "port": port} | shared for host, port in target.hosts]


def _place(target: Target) -> dict[str, Any]:
    if target.kind == "unix":
        return {"path": target.path}
    [(host, port)] = target.hosts
    return {"host": host, "port": port, **_tls_files(target)}


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
