"""Asks Sentinel again when its answer may be out of date; redis-py asks when it connects, and then trusts the connection.

A primary that was stopped, or cut off, may come back after Sentinel has put another in its place. Until it hears of that it
answers as before, out of its old data, and what it acknowledges is lost (redis/redis-py #3560 describes such a loss; #3874).
So Sentinel is asked again before a connection is used that was idle for longer than the shortest failover takes, and after
any error; if the primary is another one, redis-py's pool drops its idle connections.

The sentinel that leads a failover goes on naming the old primary, which may be up again, until every replica follows the new
one: it is ignored until then. And redis-py loses sentinels when several threads or tasks ask at a time: each moves the one
that answered to the front of a list that the others are changing, too (no upstream issue found; redis/redis-py #4331
rewrites that code). All this is for redis-py up to 8.1.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

import redis
import redis.asyncio.sentinel
import redis.sentinel

from redis_sessions.client.pool import AsyncDirectRedis, AsyncSentinelPool, DirectRedis, SentinelPool, own_error

# Sentinel finds a primary down after 30 s by default. If that is set below 1 s, failovers can be quicker than this.
TRUST_S: Final = 1.0
# How long an idle connection is trusted after no sentinel could be asked, or none knew a primary.
UNREACHED_TRUST_S: Final = 15.0
# Errors of one sentinel, after which the next is asked. A password that is refused is a ConnectionError, too.
_AWAY: Final = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.NoPermissionError)


class _Discovery:
    """Mixin for redis-py's Sentinel classes: which sentinel to ask first, and when to believe one."""

    sentinels: list[Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        self._first: Any = None
        super().__init__(*args, **options)

    def _in_order(self) -> list[Any]:
        return sorted(self.sentinels, key=lambda sentinel: sentinel is not self._first)

    def _address(self, sentinel: Any, masters: dict[str, Any], service_name: str) -> tuple[str, int] | None:
        state = masters.get(service_name)
        known: Any = self
        if state is None or "failover_in_progress" in state["flags"] or not known.check_master_state(state, service_name):
            return None
        self._first = sentinel
        return state["ip"], state["port"]

    @staticmethod
    def _noted(error: Any, sentinel: Any) -> Any:
        """The error, with the name of the sentinel that it is of, for `translate`."""
        error.sentinel = "{host}:{port}".format_map(sentinel.connection_pool.connection_kwargs)
        return error


class Sentinel(_Discovery, redis.sentinel.Sentinel):
    """The sentinels of one deployment."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Ask one after the other. Raises MasterNotFoundError; its cause is the last sentinel's error."""
        failures: list[redis.RedisError | None] = [None]
        for sentinel in self._in_order():
            try:
                if address := self._address(sentinel, sentinel.sentinel_masters(), service_name):
                    return address
            except _AWAY as error:
                failures = [self._noted(error, sentinel)]
        raise redis.sentinel.MasterNotFoundError from failures.pop()  # its traceback holds this frame


class AsyncSentinel(_Discovery, redis.asyncio.sentinel.Sentinel):
    """Same as Sentinel, for asyncio."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Same as Sentinel.discover_master."""
        failures: list[redis.RedisError | None] = [None]
        for sentinel in self._in_order():
            try:
                if address := self._address(sentinel, await sentinel.sentinel_masters(), service_name):
                    return address
            except _AWAY as error:
                failures = [self._noted(error, sentinel)]
        raise redis.asyncio.sentinel.MasterNotFoundError from failures.pop()  # same as above


class _Trust:
    """Mixin for pools: when to ask Sentinel again."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._good_s = math.inf  # nothing is idle yet, and connecting asks
        self._unreached_s = -math.inf
        self._failed = False
        super().__init__(*args, **options)

    def _in_doubt(self) -> bool:
        now_s = time.monotonic()
        idle = now_s - self._good_s > TRUST_S and now_s - self._unreached_s > UNREACHED_TRUST_S
        failed, self._failed = self._failed, False
        return idle or failed

    def release(self, connection: Any) -> Any:
        if own_error(connection) is None:
            self._good_s = time.monotonic()
        else:
            self._failed = True
        return super().release(connection)  # type: ignore[misc] # the pool's


class PrimaryPool(_Trust, SentinelPool):  # type: ignore[misc] # untyped there
    """A pool that asks Sentinel when in doubt."""

    def get_connection(self, *args: Any, **options: Any) -> Any:
        if self._in_doubt():
            try:
                self.get_master_address()  # type: ignore[no-untyped-call] # redis-py's
            except (redis.ConnectionError, redis.TimeoutError):
                self._unreached_s = time.monotonic()
        return super().get_connection(*args, **options)


class AsyncPrimaryPool(_Trust, AsyncSentinelPool):
    """Same as PrimaryPool, for asyncio."""

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        if self._in_doubt():
            try:
                await self.get_master_address()  # type: ignore[no-untyped-call] # redis-py's
            except (redis.ConnectionError, redis.TimeoutError):
                self._unreached_s = time.monotonic()
        return await super().get_connection(*args, **options)


class Primary(DirectRedis):
    """The primary that Sentinel names. Closing it closes the connections to the sentinels, too (redis/redis-py #3024)."""

    def close(self) -> None:
        super().close()
        pool: Any = self.connection_pool
        pool.sentinel_manager.close()


class AsyncPrimary(AsyncDirectRedis):
    """Same as Primary, for asyncio."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's signature
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        await pool.sentinel_manager.aclose()
