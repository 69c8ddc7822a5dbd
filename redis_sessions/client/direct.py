"""redis-py clients whose single commands go straight to a connection of their pool.

`execute_command` of redis-py 8.1 takes half of the time of a call on a local server for what the clients that this package
builds don't use: its own retries, its metrics, keys for a client-side cache. What keeps a call safe is in the pool
(`pool.py`), and what is sent again is decided in `execute.py`; pipelines are as in redis-py.
"""

from __future__ import annotations

from typing import Any, Final

import redis
import redis.asyncio
from hiredis import pack_command

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
