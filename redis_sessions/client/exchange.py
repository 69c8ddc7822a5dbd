"""Several commands on one connection, past what redis-py 8.1 does around them.

- A save and the WAIT for its replicas, in one round trip. WAIT is about the last write of its own connection. A pipeline of
  redis-py's cluster client takes no scripts, and sends a redirected command again without its neighbors; `execute.py`
  follows redirections.
- A pipeline to one server, or one node of a cluster: an interrupt can make redis-py's give its connection back twice, as it
  ends and as it is collected. No upstream issue found.
- The batches of an import, and those of a scan of a cluster, whose commands are about single keys: a pipeline of redis-py
  takes 9 µs of processor time for each, that of asyncio 14, and this less than one.

What keeps a connection safe is in its pool (`pool.py`), and what is sent again is decided in `execute.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import redis
from hiredis import Reader, pack_command
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from redis_sessions.operations.command import Batch

T = TypeVar("T")
# A command, and the options for its reply.
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


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


def exchange(client: Any, calls: Sequence[Call], meanwhile: Callable[[], None] | None = None) -> list[Any]:
    """Send commands on one connection of a client of one server: the replies, errors among them.

    `meanwhile` is called after sending, as often as that is tried.

    Only a ReadOnlyError is raised, so that the pool sees it: after a failover the server's name must be looked up again.
    """

    def attempt(connection: Any) -> list[Any]:
        connection.send_packed_command(connection.pack_commands([args for args, _ in calls]))
        if meanwhile:
            try:
                meanwhile()
            except BaseException:
                connection.disconnect()  # its reply is unread
                raise
        replies: list[Any] = []
        for args, options in calls:
            try:
                replies.append(client.parse_response(connection, args[0], **options))
            except redis.ResponseError as error:
                replies.append(error)
        return _writable(replies)

    return on_connection(client, attempt)


async def aexchange(client: Any, calls: Sequence[Call], meanwhile: Callable[[], None] | None = None) -> list[Any]:
    """Same as exchange, for asyncio; the client may also be a node of a cluster."""

    async def attempt(connection: Any) -> list[Any]:
        await connection.send_packed_command(connection.pack_commands([args for args, _ in calls]))
        if meanwhile:
            try:
                meanwhile()
            except BaseException:
                await connection.disconnect(nowait=True)  # its reply is unread
                raise
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


def send_batch(client: Any, batch: Batch) -> list[Any]:
    """Send a batch by a client of one server. A refusal, as redis-py's error, is in the place of its reply."""
    return on_connection(client, partial(_send_batch, batch))


def _send_batch(batch: Batch, connection: Any) -> list[Any]:
    connection.send_packed_command(_joined(batch), check_health=False)
    replies: list[Any] = []
    try:
        while len(replies) < len(batch):
            try:
                replies.append(connection.read_response(disable_decoding=True))
            except redis.ResponseError as error:
                replies.append(error)
            _add_received(connection, replies, len(batch))
    except BaseException:
        connection.disconnect()
        raise
    return replies


async def asend_batch(client: Any, batch: Batch) -> list[Any]:
    """Same as send_batch, for asyncio; the client may also be a node of a cluster."""
    return await aon_connection(client, partial(_asend_batch, batch))


async def _asend_batch(batch: Batch, connection: Any) -> list[Any]:
    await connection.send_packed_command(_joined(batch))
    replies: list[Any] = []
    try:
        while len(replies) < len(batch):
            try:
                replies.append(await connection.read_response(disable_decoding=True))
            except redis.ResponseError as error:
                replies.append(error)
            _add_received(connection, replies, len(batch))
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return replies


def _joined(batch: Batch) -> tuple[bytes]:
    pack: Any = pack_command  # its annotation is wrong
    return (b"".join(map(pack, batch)),)


def _add_received(connection: Any, replies: list[Any], count: int) -> None:
    """Add the replies that were received together with the one before.

    Not in RESP3, where a message that is no reply may be among them, nor by redis-py's own parser: there redis-py reads one
    after the other.
    """
    reader = getattr(connection._parser, "_reader", None)  # noqa: SLF001
    if isinstance(reader, Reader) and str(connection.protocol) == "2":
        received = iter(partial(reader.gets, False), NOT_ENOUGH_DATA)
        replies.extend(islice(received, count - len(replies)))
