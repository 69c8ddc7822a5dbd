"""Commands that go straight to a connection, past what redis-py 8.1 does around them.

- A single command of the clients that this package builds. Half of the time that `execute_command` takes for one on a local
  server goes into what they don't use: its own retries, its metrics, keys for a client-side cache.
- A save and the WAIT for its replicas, in one round trip. WAIT is about the last write of its own connection. A pipeline of
  redis-py's cluster client takes no scripts, and sends a redirected command again without its neighbors; `execute.py`
  follows redirections.
- A pipeline to one node of a cluster.

What keeps a connection safe is in its pool (`pool.py`), and what is sent again is decided in `execute.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import redis
import redis.asyncio
from hiredis import pack_command

T = TypeVar("T")
# A command, and the options for its reply.
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

# Their replies are as the server gave them; of others redis-py makes a bool, a dict or the like.
_AS_IT_IS: Final = ("GET", "EVALSHA")


class DirectRedis(redis.Redis):
    """A client of one server."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command and return its reply, as redis-py does, but never send it again."""
        pool: Any = self.connection_pool
        if self.connection is not None:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call] # redis-py's
        connection = pool.get_connection()
        try:
            connection.send_packed_command(_packed(connection, args), check_health=False)
            if args[0] in _AS_IT_IS:
                return connection.read_response(disable_decoding=True)
            return self.parse_response(connection, args[0], **options)  # type: ignore[no-untyped-call] # same
        finally:
            pool.release(connection)


class AsyncDirectRedis(redis.asyncio.Redis):
    """Same as DirectRedis, for asyncio."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Same as DirectRedis.execute_command."""
        pool: Any = self.connection_pool
        if self.single_connection_client:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call] # same
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(_packed(connection, args), check_health=False)
            if args[0] in _AS_IT_IS:
                return await connection.read_response(disable_decoding=True)
            return await self.parse_response(connection, args[0], **options)
        finally:
            await pool.release(connection)


def _packed(connection: Any, args: tuple[Any, ...]) -> Any:
    """A command as it is sent. redis-py's own way, for names of two words and for further types, takes twice as long."""
    try:
        if " " not in args[0]:
            return (pack_command(args),)
    except TypeError:  # a name in bytes, or a type that hiredis doesn't know
        pass
    return connection.pack_command(*args)


def on_connection(client: Any, attempt: Callable[[Any], T]) -> T:
    """Call `attempt(connection)` with a connection of a client of one server, as often as that is to be retried."""
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        result: T = connection.retry.call_with_retry(partial(attempt, connection), lambda _: connection.disconnect())
        return result
    finally:
        pool.release(connection)


async def aon_connection(client: Any, attempt: Callable[[Any], Awaitable[T]]) -> T:
    """Same as on_connection, for asyncio; the client may also be a node of a cluster, which lends connections itself."""
    pool = getattr(client, "connection_pool", client)
    connection = pool.acquire_connection() if pool is client else await pool.get_connection()
    try:
        result: T = await connection.retry.call_with_retry(partial(attempt, connection), lambda _: connection.disconnect())
        return result
    finally:
        await awaited(pool.release(connection))


def exchange(client: Any, calls: Sequence[Call]) -> list[Any]:
    """Send commands on one connection of a client of one server: the replies, errors among them.

    Only a ReadOnlyError is raised, so that the pool sees it: after a failover the server's name must be looked up again.
    """

    def attempt(connection: Any) -> list[Any]:
        connection.send_packed_command(connection.pack_commands([args for args, _ in calls]))
        replies: list[Any] = []
        for args, options in calls:
            try:
                replies.append(client.parse_response(connection, args[0], **options))
            except redis.ResponseError as error:
                replies.append(error)
        return _writable(replies)

    return on_connection(client, attempt)


async def aexchange(client: Any, calls: Sequence[Call]) -> list[Any]:
    """Same as exchange, for asyncio; the client may also be a node of a cluster."""

    async def attempt(connection: Any) -> list[Any]:
        await connection.send_packed_command(connection.pack_commands([args for args, _ in calls]))
        replies: list[Any] = []
        for args, options in calls:
            try:
                replies.append(await client.parse_response(connection, args[0], **options))
            except redis.ResponseError as error:
                replies.append(error)
        return _writable(replies)

    return await aon_connection(client, attempt)


def _writable(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, redis.ReadOnlyError):
            raise reply
    return replies


async def awaited(given: Any) -> Any:
    """What came of a call, which may have to be awaited."""
    return await given if inspect.isawaitable(given) else given
