"""Finds what is risky in a redis-py client that the caller built, from its public attributes; logs it once per process."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from typing import Any, Final

import redis
import redis.asyncio
from redis.cache import CacheInterface
from redis.connection import ConnectionInterface

from redis_sessions.client.pool import SafePool

log = logging.getLogger("redis_sessions")

_KNOWN: Final = (redis.Redis, redis.RedisCluster, redis.asyncio.Redis, redis.asyncio.RedisCluster)
# Packages with clients that look like redis-py's.
_FOREIGN: Final = {"valkey", "coredis", "aioredis"}
_LONG_S: Final = 15
_DEFAULT_S: Final = 5  # redis-py's socket_timeout
_warned: set[str] = set()


def risks(client: Any) -> tuple[str, ...] | None:
    """What is risky in a client; None if that can't be known, as for an emulation or a mock."""
    if not isinstance(client, _KNOWN) or is_fake(client):
        return None
    found = ["retries everything, INCR too: a counter may count a lost reply twice"] if resends(client) else []
    for look in (_pooling, _waiting, _parsing):
        with contextlib.suppress(Exception):  # a client without the attribute must still work
            found += look(client)
    return tuple(found)


def check(client: Any) -> None:
    """Raise TypeError for a client of another library, and for one that caches replies."""
    foreign = {str(part.__module__).split(".")[0] for part in type(client).__mro__} & _FOREIGN
    if foreign:
        raise TypeError(
            f"a client of {foreign.pop()} raises errors of its own: pass one of redis-py, such as redis.Redis(…)"
        )
    holders = [getattr(client, "__dict__", {}).get(name) for name in ("connection_pool", "nodes_manager")]
    if any(isinstance(getattr(holder, name, None), CacheInterface) for holder in holders for name in ("cache", "_cache")):
        raise TypeError("a client that caches serves session IDs that have expired: build it without cache and cache_config")


def speaks_tls(client: Any) -> bool:
    """Whether a client's settings say that it uses TLS. Sends nothing."""
    options: dict[str, Any] = {}
    if isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster):
        options = _options(client)
    kind = options.get("connection_class") or getattr(getattr(client, "connection_pool", None), "connection_class", None)
    encrypts = isinstance(kind, type) and issubclass(kind, redis.SSLConnection | redis.asyncio.SSLConnection)
    return encrypts or options.get("ssl") is True


def warn(client: Any) -> None:
    """Log what is risky in a client, in one warning; what this process has logged before is left out."""
    new = [risk for risk in risks(client) or () if risk not in _warned]
    if new:
        _warned.update(new)
        log.warning(
            "the redis-py client that was passed in %s. SessionStore.from_url builds one that is safe", "; it ".join(new)
        )


def resends(client: Any) -> bool:
    """Whether a client itself sends again what got no reply."""
    try:
        retry = client.get_retry() if hasattr(client, "get_retry") else client.retry
        retries = retry.get_retries() if retry else 0
    except Exception:  # noqa: BLE001 - a client without the attribute must still work
        return False
    return isinstance(retries, int) and retries > 0


def _pooling(client: Any) -> Iterator[str]:
    if getattr(client, "single_connection_client", None) is True or isinstance(
        getattr(client, "connection", None), ConnectionInterface
    ):
        yield "has a single connection: threads wait for each other, and a forked process reads its parent's replies"
    if isinstance(client, redis.Redis | redis.asyncio.Redis):
        pool: Any = client.connection_pool
        if pool.maint_notifications_enabled() in (True, "auto"):
            yield "has maintenance notifications on: after an interrupted call one conversation may get another's session ID"
        if isinstance(pool, redis.ConnectionPool) and not isinstance(pool, SafePool):
            yield "has a pool that a signal can make leak connections or mix up replies: redis_sessions.client.pool"


def _waiting(client: Any) -> Iterator[str]:
    options = _options(client)
    for name in ("socket_timeout", "socket_connect_timeout"):
        seconds = options.get(name, 0)  # the default of redis-py is short
        if seconds is None:
            yield f"has no {name}: a server that hangs stops the worker for good"
        elif isinstance(seconds, int | float) and seconds > _LONG_S:
            yield f"has a {name} of more than {_LONG_S} s: leases lapse while it waits"


def reply_s(client: Any) -> float | None:
    """How long a client waits for a reply, in seconds; None if that has no limit, or can't be known."""
    try:
        seconds = _options(client).get("socket_timeout", _DEFAULT_S)
    except Exception:  # noqa: BLE001 - a client without the attribute must still work
        return None
    return seconds if isinstance(seconds, int | float) else None


def _options(client: Any) -> Any:
    return client.connection_kwargs if isinstance(client, redis.asyncio.RedisCluster) else client.get_connection_kwargs()


def _parsing(_: Any) -> Iterator[str]:
    if importlib.util.find_spec("hiredis") is None:
        yield "works without hiredis, which is slow and can mix up late replies: pip install 'redis[hiredis]'"


def is_fake(client: Any) -> bool:
    """Whether a client is an emulation of a server inside this process, or speaks to one."""
    made_of = [*type(client).__mro__, getattr(getattr(client, "connection_pool", None), "connection_class", None)]
    return any(str(getattr(part, "__module__", "")).split(".")[0] == "fakeredis" for part in made_of)
