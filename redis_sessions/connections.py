"""Where redis-py's connections say too little about TLS, or close too little behind Sentinel."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

from redis_sessions.refusals import cut_off


class TLSConnection(redis.SSLConnection):
    """Tells a server that refuses our certificate from one that is away, by when it hangs up.

    In TLS 1.3 it does so after the handshake, and hanging up may cost the client its words; so it is asked once.
    """

    def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        try:
            super().on_connect_check_health(*args, **options)
            self.send_command("PING", check_health=False)  # type: ignore[no-untyped-call]
            self.read_response()
        except redis.ConnectionError as error:
            raise cut_off(error) from error


class AsyncTLSConnection(redis.asyncio.SSLConnection):
    """Same as TLSConnection, for asyncio."""

    async def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        try:
            await super().on_connect_check_health(*args, **options)
            await self.send_command("PING", check_health=False)
            await self.read_response()
        except redis.ConnectionError as error:
            raise cut_off(error) from error


class TLSSentinel(redis.sentinel.Sentinel):
    """Says why it found no primary, which redis-py drops: a certificate that is refused is no reason to ask again."""

    def discover_master(self, service_name: str) -> Any:
        try:
            return super().discover_master(service_name)  # type: ignore[no-untyped-call]
        except redis.sentinel.MasterNotFoundError as error:
            not_found = error
        # Asked outside of the handler, so that what it raises has no context but its own.
        try:
            self.sentinels[0].ping()
        except redis.RedisError as cause:
            raise not_found from cause
        raise not_found


class AsyncTLSSentinel(redis.asyncio.sentinel.Sentinel):
    """Same as TLSSentinel, for asyncio."""

    async def discover_master(self, service_name: str) -> Any:
        try:
            return await super().discover_master(service_name)
        except redis.asyncio.sentinel.MasterNotFoundError as error:
            not_found = error
        # Asked outside of the handler, so that what it raises has no context but its own.
        try:
            await self.sentinels[0].ping()
        except redis.RedisError as cause:
            raise not_found from cause
        raise not_found


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
