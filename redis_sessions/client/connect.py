"""Builds redis-py clients that are safe to use, measured with redis-py 8.1.

- Their pools never hand out a connection with an unread reply (`pool.py`).
- Maintenance notifications are off: with them on, redis-py's pools skip their check for unread data (since redis/redis-py
  #4177; #4252 and #4260 are about its effects), and a connection returned halfway through a call hands one conversation's
  session ID to another.
- redis-py retries nothing: it can't tell INCR from GET. `execute.py` sends again what may be sent twice, until a deadline,
  which outlasts a restart and a failover. Only a sentinel is asked again at once, where an idle connection was reset.
- Timeouts are short, replies stay bytes. RESP2, since the RESP3 greeting holds an integer, and a signal handler that raises
  while hiredis renders one crashes the process (no upstream issue found). And with the pure Python parser
  RESP3 can put a late reply into the wrong slot (redis/redis-py #4283). So a connection begins with AUTH and SELECT alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from redis_sessions.client import callers
from redis_sessions.client.cluster import AsyncCluster, Cluster
from redis_sessions.client.execute import Link
from redis_sessions.client.pool import (
    AsyncDirectRedis,
    AsyncPool,
    AsyncTLSConnection,
    DirectRedis,
    PerProcess,
    Pool,
    TLSConnection,
)
from redis_sessions.client.sentinel import AsyncPrimary, AsyncPrimaryPool, AsyncSentinel, Primary, PrimaryPool, Sentinel
from redis_sessions.client.url import Target
from redis_sessions.errors import InvalidSettings
from redis_sessions.settings import StoreSettings

SyncClient: TypeAlias = redis.Redis | redis.RedisCluster
AsyncClient: TypeAlias = redis.asyncio.Redis | redis.asyncio.RedisCluster


def connect(target: Target, settings: StoreSettings) -> PerProcess[SyncClient]:
    """Sync clients for the target, which connect at their first command. Raises InvalidSettings for an unreadable file."""
    files = _tls_files(target)
    options = _options(target, settings) | {"retry": redis.retry.Retry(NoBackoff(), 0)}
    if target.kind == "cluster":
        options |= files | {"connection_pool_class": Pool}
        return PerProcess(lambda: Cluster(lambda: _startup(target) | options))
    return PerProcess(lambda: _client(target, files, dict(options), _SYNC))


def aconnect(target: Target, settings: StoreSettings) -> PerProcess[AsyncClient]:
    """Same as connect, for asyncio."""
    files = _tls_files(target)
    patience_s = settings.deadline_ms / 1000
    options = _options(target, settings) | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
    if target.kind == "cluster":
        del options["max_connections"]
        # Every so many MOVED redis-py up to 8.1 closes the connections of all calls under way, and doesn't look the slots up
        # again (redis/redis-py #4322); each MOVED says where its slot is anyway.
        options |= files | {"ssl": target.tls, "reinitialize_steps": 0}
        options["startup_nodes"] = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in target.hosts]
        return PerProcess(lambda: AsyncCluster(settings.max_connections, patience_s, options), per_loop=True)
    options["patience_s"] = patience_s
    return PerProcess(lambda: _client(target, files, dict(options), _ASYNC), per_loop=True)


def link(target: Target, settings: StoreSettings) -> Link:
    """How to use a client that this module built."""
    return Link(
        address=target.address,
        deadline_s=settings.deadline_ms / 1000,
        cluster=target.kind == "cluster",
        tls=target.tls,
        risks=(),
    )


def callers_link(client: Any, settings: StoreSettings, *, awaits: bool) -> Link:
    """How to use a client that the caller built: its own retries apply. What is risky in it is logged once.

    Raises TypeError for a client of the other flavor, for one that caches replies, and for anything else; InvalidSettings
    for settings that it can't have.
    """
    store, other = ("AsyncSessionStore", "SessionStore") if awaits else ("SessionStore", "AsyncSessionStore")
    if isinstance(client, SyncClient if awaits else AsyncClient):
        raise TypeError(f"{store} takes {'an async' if awaits else 'a sync'} redis-py client: give this one to {other}")
    if not callable(getattr(client, "execute_command", None)):
        # It may be a URL with a password, so only its type is shown.
        raise TypeError(f"{store} takes a redis-py client, not a {type(client).__name__}: {store}.from_url(url) makes one")
    if settings.replicas and callers.is_fake(client):
        raise InvalidSettings("fakeredis has no replicas to wait for", remedy="set replicas to 0, or use a real server")
    callers.check(client)
    callers.warn(client)
    return Link(
        cluster=hasattr(client, "get_primaries"),
        client_resends=callers.resends(client),
        tls=callers.speaks_tls(client),
        emulated=callers.is_fake(client),
        risks=callers.risks(client),
        reply_s=callers.reply_s(client),
    )


def sentinels(client: Any) -> list[tuple[Any, str]]:
    """Clients of the sentinels behind a client, each with the name of the service it watches."""
    pool = client.connection_pool if isinstance(client, redis.Redis | redis.asyncio.Redis) else None
    if not isinstance(pool, redis.sentinel.SentinelConnectionPool | redis.asyncio.sentinel.SentinelConnectionPool):
        return []
    return [(sentinel, pool.service_name) for sentinel in pool.sentinel_manager.sentinels]


_SYNC = (redis, DirectRedis, Pool, TLSConnection, Sentinel, Primary, PrimaryPool)
_ASYNC = (redis.asyncio, AsyncDirectRedis, AsyncPool, AsyncTLSConnection, AsyncSentinel, AsyncPrimary, AsyncPrimaryPool)


def _client(target: Target, files: dict[str, str], options: dict[str, Any], flavor: tuple[Any, ...]) -> Any:
    """A client for a target that is not a cluster."""
    module, client, pool, tls_connection, sentinel_class, primary, primary_pool = flavor
    # As text, since it is sent as it is: see the top for what an integer can do.
    options |= {"db": str(target.database) if target.database else 0}
    if target.kind == "sentinel":
        # The sentinels are asked as the primary is, but have a user and a password of their own, and no database.
        shared = {name: value for name, value in options.items() if name != "db"} | files
        shared |= {"username": target.sentinel_username, "password": target.sentinel_password}
        shared["connection_class"] = module.SSLConnection if target.tls else module.Connection
        # An idle connection that was reset must not count as a sentinel that is away: then the old primary would be trusted.
        shared["retry"] = module.retry.Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        sentinel = sentinel_class([])
        sentinel.sentinels = [module.Redis.from_pool(pool(host=host, port=port, **shared)) for host, port in target.hosts]
        options |= ({"ssl": True} | files) if target.tls else {}
        return sentinel.master_for(target.service, redis_class=primary, connection_pool_class=primary_pool, **options)
    if target.kind == "unix":
        options |= {"connection_class": module.UnixDomainSocketConnection, "path": target.path}
    else:
        [(host, port)] = target.hosts
        connection = tls_connection if target.tls else module.Connection
        options |= {"connection_class": connection, "host": host, "port": port} | files
    return client.from_pool(pool(**options))


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
    """Where a sync cluster client begins. redis-py 8.1 ignores `connection_pool_class` without a URL (no issue found)."""
    nodes = [redis.cluster.ClusterNode(host, port) for host, port in target.hosts]
    host, port = target.hosts[0]
    place = f"[{host}]" if ":" in host else quote(host, safe="")
    return {"startup_nodes": nodes, "url": f"{'rediss' if target.tls else 'redis'}://{place}:{port}"}


def _tls_files(target: Target) -> dict[str, str]:
    """The files of TLS. Raises InvalidSettings for one that can't be read: trying again would not help."""
    for option, path in target.tls_files.items():
        try:
            with Path(path).open("rb"):
                pass
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a path"
            raise InvalidSettings(
                f"names a file in {option} that can't be read ({why})", setting="url", remedy="name a readable PEM file"
            ) from None
    return dict(target.tls_files)
