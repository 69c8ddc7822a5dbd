"""Where redis-py's connections say too little about TLS, or close too little behind Sentinel."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio

from redis_sessions.client.translate import answers, cut_off


def ask(connection: Any) -> None:
    """See by a PING whether a connection leads anywhere. Raises what the server says against it, and what redis-py does."""
    connection.send_command("PING", check_health=False)
    try:
        connection.read_response()
    except redis.ResponseError as error:
        if not answers(error):
            raise


async def aask(connection: Any) -> None:
    """Same as ask, for asyncio."""
    await connection.send_command("PING", check_health=False)
    try:
        await connection.read_response()
    except redis.ResponseError as error:
        if not answers(error):
            raise


class TLSConnection(redis.SSLConnection):
    """Tells a server that refuses our certificate from one that is away, by when it hangs up.

    In TLS 1.3 it does so after the handshake, and hanging up may cost the client its words; so it is asked once.
    """

    def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        try:
            super().on_connect_check_health(*args, **options)
            ask(self)
        except redis.ConnectionError as error:
            raise cut_off(error) from error


class AsyncTLSConnection(redis.asyncio.SSLConnection):
    """Same as TLSConnection, for asyncio."""

    async def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        try:
            await super().on_connect_check_health(*args, **options)
            await aask(self)
        except redis.ConnectionError as error:
            raise cut_off(error) from error


class Watched(redis.Redis):
    """The primary that Sentinel watches. Closing it closes the connections to Sentinel's processes as well."""

    def close(self) -> None:
        super().close()
        for watcher in _watchers(self):
            watcher.close()


class AsyncWatched(redis.asyncio.Redis):
    """Same as Watched, for asyncio."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's
        await super().aclose(close_connection_pool)
        for watcher in _watchers(self):
            await watcher.aclose()


def _watchers(client: Any) -> list[Any]:
    watchers: list[Any] = client.connection_pool.sentinel_manager.sentinels
    return watchers
