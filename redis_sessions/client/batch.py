"""Sends many commands by one connection, and reads their replies as the server gave them.

For a scan of a cluster, whose commands are about single keys: a pipeline of redis-py 8.1 takes 9 µs of processor time for
each, that of asyncio 14, and this less than one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import redis
from hiredis import Reader, pack_command
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from redis_sessions.client.direct import aon_connection, on_connection
from redis_sessions.operations.command import Batch


def send_batch(client: Any, batch: Batch) -> list[Any]:
    """Send a batch by a client of one server. A refusal, as redis-py's error, is in the place of its reply."""
    return on_connection(client, partial(_exchange, batch))


def _exchange(batch: Batch, connection: Any) -> list[Any]:
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


async def asend_batch(client: Any, batch: Batch) -> list[Any]:
    """Same as send_batch, for asyncio; the client may also be a node of a cluster."""
    return await aon_connection(client, partial(_aexchange, batch))


async def _aexchange(batch: Batch, connection: Any) -> list[Any]:
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
