"""Sends a command and another behind it on the same connection, in one round trip: a save, and the WAIT for its replicas.

WAIT is about the last write of its own connection, so it has to go by the same one, and on a cluster to the same node. A
pipeline of redis-py doesn't do: that of a cluster takes no scripts and sends a redirected command again without its
neighbors, and that of a single server returns a connection to its pool as if READONLY were an answer like any other. So
redirections are followed here, by the same methods as in redis-py (8.1).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import redis

from redis_sessions.client.cluster import AsyncCluster, Cluster
from redis_sessions.client.translate import translate

if TYPE_CHECKING:
    from redis_sessions.client.execute import Send

# As many redirections as redis-py follows, and as many tries as a cluster client of its own makes by default.
_REDIRECTIONS: Final = 16
_CALLERS_RETRIES: Final = 3

Exchange: TypeAlias = Callable[[Any, bool], Any]
Call: TypeAlias = Callable[[], Any]


def follow(client: Any, step: Send) -> list[Any]:
    """Send the command of this step and the one that follows it: both replies.

    Raises what the first was answered by. If the second was refused, the error (ours) is in the place of its reply.
    """
    if not hasattr(client, "get_primaries"):
        return _exchange(client, step, asking=False)
    plan = _on_cluster(client, step, lambda node, asking: _exchange(client.get_redis_connection(node), step, asking=asking))
    try:
        call = next(plan)
        while True:
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - the plan raises it again
                call = plan.throw(error)
            else:
                call = plan.send(result)
    except StopIteration as done:
        replies: list[Any] = done.value
        return replies


async def afollow(client: Any, step: Send) -> list[Any]:
    """Same as follow, for asyncio."""
    if not hasattr(client, "get_primaries"):
        pool = client.connection_pool
        return await _aexchange(client, step, pool.get_connection, pool.release, asking=False)
    if isinstance(client, AsyncCluster):
        async with client.admission():
            return await _adrive(client, step)
    await client.initialize()
    return await _adrive(client, step)


async def _adrive(client: Any, step: Send) -> list[Any]:
    def exchange(node: Any, asking: bool) -> Awaitable[list[Any]]:  # noqa: FBT001
        return _aexchange(node, step, node.acquire_connection, node.release, asking=asking)

    plan = _on_cluster(client, step, exchange)
    try:
        call = next(plan)
        while True:
            try:
                result = await _awaited(call())
            except Exception as error:  # noqa: BLE001 - the plan raises it again
                call = plan.throw(error)
            else:
                call = plan.send(result)
    except StopIteration as done:
        replies: list[Any] = done.value
        return replies


def _on_cluster(client: Any, step: Send, exchange: Exchange) -> Generator[Call, Any, list[Any]]:
    """The plan for a cluster: to which node both go. Yields calls, and is sent what they return."""
    manager = client.nodes_manager
    slot = client.keyslot(step.command.redis_keys[0] if step.command.script else step.command.args[1])
    # Our own clients are tried again by the plan of the whole operation.
    retries = _CALLERS_RETRIES if step.again and not isinstance(client, Cluster | AsyncCluster) else 0
    node, asking = None, False
    for _ in range(_REDIRECTIONS):
        try:
            node = node or manager.get_node_from_slot(slot)
            replies: list[Any] = yield partial(exchange, node, asking)
        except redis.exceptions.MovedError as moved:
            yield partial(manager.move_slot, moved)
            node, asking = None, False
        except redis.exceptions.AskError as ask:
            node, asking = client.get_node(host=ask.host, port=ask.port), True
            if node is None:  # a node that had no slot when the slots were asked for
                yield manager.initialize
                raise
        except redis.exceptions.MaxConnectionsError:
            raise
        except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ClusterDownError, redis.RedisClusterException):
            if node is not None:
                manager.move_node_to_end_of_cached_nodes(node.name)
            yield manager.initialize
            if not retries:
                raise
            retries -= 1
            node, asking = None, False
        else:
            return replies
    raise redis.exceptions.ClusterError("too many redirections")


def _packed(connection: Any, step: Send, *, asking: bool) -> Any:
    return connection.pack_commands([*([("ASKING",)] if asking else []), step.arguments(), step.command.followed_by])


def _exchange(client: Any, step: Send, *, asking: bool) -> list[Any]:
    """Send both on one connection of this client of one server."""
    pool = client.connection_pool
    connection = pool.get_connection()

    def exchange() -> list[Any]:
        connection.send_packed_command(_packed(connection, step, asking=asking))
        replies = []
        for name in _names(step, asking=asking):
            try:
                replies.append(client.parse_response(connection, name, **step.options()))
            except redis.ResponseError as error:
                replies.append(error)
        return _checked(replies, step)

    try:
        both: list[Any] = connection.retry.call_with_retry(exchange, lambda _: connection.disconnect())
        return both
    finally:
        pool.release(connection)


async def _aexchange(client: Any, step: Send, acquire: Call, release: Callable[[Any], Any], *, asking: bool) -> list[Any]:
    """Same as _exchange, for asyncio; the client may also be a node of a cluster."""
    connection = await _awaited(acquire())

    async def exchange() -> list[Any]:
        await connection.send_packed_command(_packed(connection, step, asking=asking))
        replies = []
        for name in _names(step, asking=asking):
            try:
                replies.append(await client.parse_response(connection, name, **step.options()))
            except redis.ResponseError as error:
                replies.append(error)
        return _checked(replies, step)

    try:
        both: list[Any] = await connection.retry.call_with_retry(exchange, lambda _: connection.disconnect())
        return both
    finally:
        await _awaited(release(connection))


async def _awaited(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


def _names(step: Send, *, asking: bool) -> list[Any]:
    return [*(["ASKING"] if asking else []), step.arguments()[0], step.command.followed_by[0]]


def _checked(replies: list[Any], step: Send) -> list[Any]:
    """The two replies. Raises the first if it is an error: in the place of the call, for the pool to see it."""
    first, second = replies[-2:]
    if isinstance(first, Exception):
        raise first
    translation = translate(second, step.command.key, "Redis") if isinstance(second, Exception) else None
    return [first, translation.error if translation else second]
