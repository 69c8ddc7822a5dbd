"""What redis-py's part for Sentinel lacks: it asks Sentinel when it connects, and then trusts the connection for good.

A primary that was stopped, or cut off, may come back after Sentinel has put another in its place. Until it is told so it
answers as before, out of its old data, and what it acknowledges is lost. So Sentinel is asked again before a connection is
used that was idle for longer than a failover takes at the least, or after anything went wrong; if the primary is another
one, the pool drops its idle connections by itself.

The sentinel that leads a failover goes on naming the old primary, which may be up again, until every replica follows the new
one: it isn't listened to until then. And redis-py forgets sentinels when several threads or tasks ask at a time: each swaps
the one that answered to the front of a list that the others are swapping in.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Coroutine
from typing import Any, Final

import redis
import redis.asyncio.sentinel
import redis.sentinel

from redis_sessions.client.pool import AsyncSentinelPool, SentinelPool

# Sentinel finds a primary down after 30 s by default. Who sets it below 1 s has failovers that are quicker than this.
TRUST_S: Final = 1.0
# How long an idle connection is trusted after no sentinel could be asked, or none knew a primary.
UNHEARD_S: Final = 15.0


class _Asked:
    """Goes before a Sentinel class: which of the sentinels to ask first, and when to believe one."""

    sentinels: list[Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        self._first: Any = None
        super().__init__(*args, **options)

    def _in_order(self) -> list[Any]:
        return sorted(self.sentinels, key=lambda sentinel: sentinel is not self._first)

    def _address(self, sentinel: Any, masters: dict[str, Any], service_name: str) -> tuple[str, int] | None:
        state = masters.get(service_name)
        if state is None or "failover_in_progress" in state["flags"] or not self.check_master_state(state, service_name):
            return None
        self._first = sentinel
        return state["ip"], state["port"]

    def check_master_state(self, state: dict[str, Any], service_name: str) -> bool:
        return bool(super().check_master_state(state, service_name))  # type: ignore[misc] # Sentinel's


class Sentinel(_Asked, redis.sentinel.Sentinel):
    """The sentinels of one deployment."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Ask one after the other. Raises MasterNotFoundError, with what the last failed by as its cause."""
        failure: redis.RedisError | None = None
        for sentinel in self._in_order():
            try:
                masters = sentinel.sentinel_masters()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                failure = error
            else:
                if address := self._address(sentinel, masters, service_name):
                    return address
        try:
            raise redis.sentinel.MasterNotFoundError from failure
        finally:
            failure = None  # its traceback holds this frame


class AsyncSentinel(_Asked, redis.asyncio.sentinel.Sentinel):
    """Same as Sentinel, for asyncio."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Same as Sentinel.discover_master."""
        failure: redis.RedisError | None = None
        for sentinel in self._in_order():
            try:
                masters = await sentinel.sentinel_masters()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                failure = error
            else:
                if address := self._address(sentinel, masters, service_name):
                    return address
        try:
            raise redis.asyncio.sentinel.MasterNotFoundError from failure
        finally:
            failure = None  # its traceback holds this frame


class _Doubt:
    """When to ask."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._heard_s = math.inf  # nothing is idle yet, and who connects asks
        self._unheard_s = -math.inf
        self._wrong = False
        super().__init__(*args, **options)

    def _doubted(self) -> bool:
        now_s = time.monotonic()
        idle = now_s - self._heard_s > TRUST_S and now_s - self._unheard_s > UNHEARD_S
        wrong, self._wrong = self._wrong, False
        return idle or wrong

    def _note(self) -> None:
        """Called while a connection is given back, and so while the exception that ended its use passes."""
        if sys.exc_info()[1] is None:
            self._heard_s = time.monotonic()
        else:
            self._wrong = True


class PrimaryPool(_Doubt, SentinelPool):  # type: ignore[misc] # untyped there
    """A pool that asks Sentinel when in doubt."""

    def get_connection(self, *args: Any, **options: Any) -> Any:
        if self._doubted():
            try:
                self.get_master_address()  # type: ignore[no-untyped-call] # redis-py's
            except (redis.ConnectionError, redis.TimeoutError):
                self._unheard_s = time.monotonic()
        return super().get_connection(*args, **options)

    def release(self, connection: Any) -> None:
        self._note()
        super().release(connection)


class AsyncPrimaryPool(_Doubt, AsyncSentinelPool):
    """Same as PrimaryPool, for asyncio."""

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        if self._doubted():
            try:
                await self.get_master_address()  # type: ignore[no-untyped-call] # redis-py's
            except (redis.ConnectionError, redis.TimeoutError):
                self._unheard_s = time.monotonic()
        return await super().get_connection(*args, **options)

    def release(self, connection: Any) -> Coroutine[Any, Any, None]:
        self._note()
        return super().release(connection)
