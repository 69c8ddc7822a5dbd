"""Clients of one server, one per process; their pools never hand out a connection with an unread reply, come what may.

redis-py's sync pool keeps a connection that a signal has torn out of a call: either its place in the pool is lost for good,
or the connection comes back with a reply unread, and the next call gets the answer to another question. Here a connection
is kept only if its call ended in order, and those in use are held weakly, so that a lost one gives its place back.

redis-py's asyncio pool is safe in this respect; added are a queue of callers when all connections are in use, and a check
whether an idle connection still works.

NAT, load balancers and proxies forget idle connections: they reset them at once, by the next packet, or are silent. Where
one connection of a pool fails, none that was idle then is tried after it: the next call connects.

A single command goes straight to a connection: half of the time that redis-py's `execute_command` (8.1) takes for one on a
local server goes into what is not used here, its own retries, its metrics and keys for a client-side cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, ClassVar, Final, Generic, TypeVar

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from hiredis import pack_command
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from redis_sessions.client.translate import answers, cut_off
from redis_sessions.forks import forgetful, process_id

C = TypeVar("C")
BROKEN: Final = (redis.ConnectionError, redis.TimeoutError, OSError)
# A connection that was idle for longer is checked by a PING before it is used.
PING_AFTER_S: Final = 15.0
# Before a connection that was idle for longer is used, the pool checks whether the server has hung up. That costs a system
# call, or in asyncio two rounds of the event loop, which may not have read the end of the connection yet.
FRESH_S: Final = 0.1
# Whether what is sent now can't be sent again: then a connection that was idle for longer than that gets the PING, too,
# since a middlebox may reset it by the next packet.
sent_once: Final[ContextVar[bool]] = ContextVar("sent_once", default=False)


class PerProcess(Generic[C]):
    """One client per process, and with `per_loop` one per event loop, built when it is first asked for.

    A forked child may lack the thread that holds one of redis-py's locks, two processes would read each other's replies from
    one connection, and a connection of asyncio works in its own event loop only (redis/redis-py #3351).
    """

    # A parent's clients, kept from being closed: for asyncio that would end the parent's wait, since both share an epoll.
    _inherited: ClassVar[list[Any]] = []

    def __init__(self, build: Callable[[], C], *, per_loop: bool = False) -> None:
        self._build = build
        self._per_loop = per_loop
        self._clients: dict[asyncio.AbstractEventLoop | None, C] = {}
        self._lock = threading.RLock()
        forgetful.add(self)

    def get(self) -> C:
        """The client of this process and event loop. Sends nothing."""
        loop = asyncio._get_running_loop() if self._per_loop else None  # noqa: SLF001 - raises nothing outside of a loop
        try:
            return self._clients[loop]
        except KeyError:
            return self._add(loop)

    def _add(self, loop: asyncio.AbstractEventLoop | None) -> C:
        with self._lock:
            clients = {its: client for its, client in self._clients.items() if its is None or not its.is_closed()}
            if loop is None and clients:  # outside of a loop, only to read its settings
                return next(iter(clients.values()))
            client = clients.pop(None) if None in clients else self._build()
            self._clients = {**clients, loop: client}
            return client

    def forget(self) -> None:
        """Let go of the clients without closing them: in a forked child they are the parent's."""
        self._inherited.append(self._clients)
        self._clients, self._lock = {}, threading.RLock()


def add_endpoint(error: BaseException, connection: Any = None) -> None:
    """Note on an error that it came before a command was sent, and which address could not be reached, for `translate`.

    A cluster announces other addresses than those of the URL. A unix socket has none.
    """
    if isinstance(error, (*BROKEN, redis.RedisClusterException)) and not hasattr(error, "endpoint"):
        port = getattr(connection, "port", None)
        error.endpoint = port and f"{connection.host}:{port}"  # type: ignore[union-attr]


def _just_used(connection: Any, idle_s: float) -> bool:
    """Whether a connection that is connected needs no check: if the server has hung up, what is sent now is sent again.

    What redis-py has read beyond the last reply is seen, and what waits in the socket is not: that would cost a system call.
    """
    if idle_s > FRESH_S or sent_once.get():
        return False
    reader = connection._parser._reader  # noqa: SLF001 - None once disconnected
    return reader is not None and not reader.has_data()


def _needs_ping(idle_s: float) -> bool:
    return idle_s > PING_AFTER_S or (idle_s > FRESH_S and sent_once.get())


def ping(connection: Any) -> None:
    """Check by a PING that a connection works. Raises what the server says against it, and what redis-py does."""
    connection.send_command("PING", check_health=False)
    try:
        connection.read_response()
    except redis.ResponseError as error:
        if not answers(error):
            raise


async def aping(connection: Any) -> None:
    """Same as ping, for asyncio."""
    await connection.send_command("PING", check_health=False)
    try:
        await connection.read_response()
    except redis.ResponseError as error:
        if not answers(error):
            raise


class TLSConnection(redis.SSLConnection):
    """Tells a server that refuses our certificate from one that is away.

    In TLS 1.3 a server refuses after the handshake, and then hangs up: the client may see no more than that (redis/redis-py
    #2066, #3599). So a PING is sent first, and a hang-up before its answer is a refusal.
    """

    def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        try:
            super().on_connect_check_health(*args, **options)
            ping(self)
        except redis.ConnectionError as error:
            raise cut_off(error) from error


class AsyncTLSConnection(redis.asyncio.SSLConnection):
    """Same as TLSConnection, for asyncio."""

    async def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        try:
            await super().on_connect_check_health(*args, **options)
            await aping(self)
        except redis.ConnectionError as error:
            raise cut_off(error) from error


def own_error(connection: Any) -> BaseException | None:
    """The error by which the call that gives a connection back ends, None if it ends in order.

    redis-py gives it back in a `finally`, where the exception being handled may as well be one that the caller was handling
    when the connection was lent.
    """
    error = sys.exception()
    return None if error is connection.lent_under else error


def _spoils(error: BaseException | None) -> bool:
    """Whether a call that ended by this error leaves its connection useless for the next one.

    Only an error that the server replied leaves it as it was; after any other a reply may be unread. And a server that has
    become read-only is no longer the primary, so its name must be looked up again.
    """
    return error is not None and (not isinstance(error, redis.ResponseError) or isinstance(error, redis.ReadOnlyError))


class SafePool:
    """Mixin that overrides how connections are checked out and returned.

    redis-py up to 8.1 loses places and mixes up replies when a signal handler raises: redis/redis-py #166, #1128 and #1134
    are about parts of it.
    """

    max_connections: int
    connection_class: Any
    connection_kwargs: dict[str, Any]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc] # the pool's
        self.forget()
        forgetful.add(self)

    def forget(self) -> None:
        """Forget all connections: in a forked child they are the parent's."""
        self._making = threading.RLock()
        self._spare: list[tuple[Any, float]] = []
        # Not a WeakSet: only a set is copied in one step, whatever other threads and signal handlers do to it.
        self._alive: set[weakref.ref[Any]] = set()

    def get_connection(self, *_: Any, **__: Any) -> Any:
        """A connection that is connected and was used or checked lately. Checked: it has nothing to read."""
        process_id()
        try:
            connection, since_s = self._spare.pop()
            idle_s = time.monotonic() - since_s
            if _just_used(connection, idle_s):
                connection.lent_under = sys.exception()
                return connection
        except IndexError:
            connection, idle_s = self._make(), 0.0
        connection.lent_under = sys.exception()
        try:
            if not connection.is_connected:
                connection.connect()
            try:
                if connection.can_read():
                    raise redis.ConnectionError
                if _needs_ping(idle_s):
                    ping(connection)
                return connection
            except BROKEN:
                self.disconnect_free_connections()
                connection.disconnect()
            connection.connect()  # not in the handler, whose error would take the place of the reason
        except BaseException as error:
            self._drop(connection)
            add_endpoint(error, connection)
            raise
        return connection

    def _make(self) -> Any:
        with self._making:
            if len(self._alive) >= self.max_connections:
                raise redis.exceptions.MaxConnectionsError
            connection = self.connection_class(**self.connection_kwargs)
            connection.made_under = self._making
            self._alive.add(weakref.ref(connection, self._alive.discard))
        return connection

    def release(self, connection: Any) -> None:
        """Keep a connection for the next call if this one ended in order."""
        error = sys.exception()
        if error is not None or connection.lent_under is not None:
            error, connection.lent_under = own_error(connection), None
        # One that was made under another lock is of the parent process, or of before a reset. A forked child that has not
        # noticed it yet may keep one here, and forgets it before it lends any.
        usable = connection.made_under is self._making and not connection.should_reconnect()
        if usable and (error is None or not _spoils(error)) and self._leads_there(connection):
            self._spare.append((connection, time.monotonic()))
        else:
            self._drop(connection)
            if isinstance(error, BROKEN):
                self.disconnect_free_connections()

    def _leads_there(self, _: Any) -> bool:
        """Whether a new connection would lead to the same server."""
        return True

    def _drop(self, connection: Any) -> None:
        self._alive.discard(weakref.ref(connection))
        connection.disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        """Drop the spare connections, and close those in use if asked."""
        spare, self._spare = self._spare, []
        for connection, _ in spare:
            self._drop(connection)
        for connection in self._all() if inuse_connections else ():
            connection.disconnect()

    def update_active_connections_for_reconnect(self) -> None:
        """Let the connections in use end their call, and not begin another."""
        for connection in self._all():
            connection.mark_for_reconnect()

    def _all(self) -> list[Any]:
        return [connection for each in list(self._alive) if (connection := each()) is not None]

    def disconnect_free_connections(self) -> None:
        self.disconnect(inuse_connections=False)


class Pool(SafePool, redis.ConnectionPool):  # type: ignore[misc] # untyped there
    """For a standalone server, or for one node of a cluster."""


class _ToPrimary:
    """Mixin for pools whose connections lead to the primary that Sentinel named last."""

    master_address: tuple[str, int] | None

    def _leads_there(self, connection: Any) -> bool:
        # While it was in use, another call may have heard of a new primary. redis-py's asyncio pool (8.1) never looks; no
        # upstream issue found.
        return self.master_address == (connection.host, connection.port)


class SentinelPool(_ToPrimary, SafePool, redis.sentinel.SentinelConnectionPool):  # type: ignore[misc] # same
    """For the primary that Sentinel names."""


class AdmissionLimit:
    """Admits so many callers at a time, the others in order of arrival.

    redis-py's BlockingConnectionPool lets newcomers overtake, and its cluster client raises at once (redis/redis-py #3135).
    """

    def __init__(self, places: int, patience_s: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._patience_s = patience_s

    async def enter(self) -> None:
        """Wait for a place. Raises MaxConnectionsError after `patience_s`."""
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(self._patience_s):
                await self._places.acquire()
        except TimeoutError:
            raise redis.exceptions.MaxConnectionsError from None

    def leave(self) -> None:
        self._places.release()


class CheckedConnection:
    """Mixin for redis-py's asyncio connections whose `can_read` finds out whether the server has hung up."""

    used_s: float | None = None  # when a call last used it, on the monotonic clock; set by its user
    lent_under: BaseException | None = None  # what was being handled then; see own_error
    health_check_interval: float
    _reader: Any
    _writer: Any

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        """As redis-py's, which before Python 3.12 makes a task for its time limit: here only if sending has to wait."""
        connection: Any = super()
        writer = self._writer
        if writer is not None and not writer.transport.get_write_buffer_size() and not self.health_check_interval:
            writer.writelines(command)
            if not writer.transport.get_write_buffer_size():
                return
            command = ()
        await connection.send_packed_command(command, check_health)

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """As redis-py's, which raises if closing takes longer than connecting may; here it then goes on by itself."""
        connection: Any = super()
        with contextlib.suppress(redis.TimeoutError):
            await connection.disconnect(*args, **options)

    async def can_read(self) -> bool:
        """False if this connection is fit for another call. Raises ConnectionError if not, and has then disconnected."""
        connection: Any = super()
        idle_s = 0.0 if self.used_s is None else time.monotonic() - self.used_s
        try:
            if _just_used(connection, idle_s) and self._reader.exception() is None and not self._reader._buffer:  # noqa: SLF001
                return False
            if idle_s > FRESH_S:
                # Two rounds: the first may have been under way when the server hung up.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            # A reset connection holds an exception, which redis-py up to 8.1 ignores. No upstream issue found.
            if not connection.is_connected or self._reader.exception() is not None or await connection.can_read():
                raise redis.ConnectionError
            if _needs_ping(idle_s):
                await aping(self)
        except BROKEN:
            self.used_s = None
            await connection.disconnect(nowait=True)
            raise redis.ConnectionError from None
        return False


@functools.cache
def checked(connection_class: type, check: type = CheckedConnection) -> type:
    """A connection class of redis-py's asyncio, with a check."""
    return type(f"Checked{connection_class.__name__}", (check, connection_class), {})


class _QueuingPool:
    """Mixin for redis-py's asyncio pools: a caller waits in line for a connection, and one that a call spoiled is closed."""

    max_connections: int
    connection_class: Any

    def __init__(self, *args: Any, patience_s: float = 5.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.connection_class = checked(self.connection_class)
        self._limit = AdmissionLimit(self.max_connections, patience_s)

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """Same as SafePool.get_connection; waits up to `patience_s` if all are in use."""
        pool: Any = self
        await self._limit.enter()
        connection = pool.get_available_connection()
        connection.lent_under = sys.exception()
        try:
            await connection.connect()
            try:
                await connection.can_read()
                return connection
            except BROKEN:
                await self.disconnect_free_connections()
            await connection.connect()  # see SafePool
        except BaseException as error:
            await self.release(connection)
            add_endpoint(error, connection)
            raise
        return connection

    def release(self, connection: Any) -> Coroutine[Any, Any, None]:
        """Same as SafePool.release. Not a coroutine function: a pipeline awaits it in a task that doesn't see the error."""
        error, connection.lent_under = own_error(connection), None
        spoiled = _spoils(error) or connection.should_reconnect()
        return self._take_back(connection, spoiled=spoiled, broken=isinstance(error, BROKEN))

    async def _take_back(self, connection: Any, *, spoiled: bool, broken: bool) -> None:
        pool: Any = self
        try:
            if spoiled or not self._leads_there(connection):
                await connection.disconnect(nowait=True)
            if broken:
                await self.disconnect_free_connections()
        finally:
            # As redis-py's own `release`, without its lock, events and metrics, which cost a call several percent.
            pool._in_use_connections.remove(connection)  # noqa: SLF001
            pool._available_connections.append(connection)  # noqa: SLF001
            self._limit.leave()
            connection.used_s = time.monotonic()

    def _leads_there(self, _: Any) -> bool:
        """Same as SafePool._leads_there."""
        return True

    async def disconnect_free_connections(self) -> None:
        """Close the idle connections, which stay in the pool and connect at their next use. Awaits no event."""
        pool: Any = self
        for connection in list(pool._available_connections):  # noqa: SLF001
            await connection.disconnect(nowait=True)

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        """Same as SafePool.disconnect. redis-py 8.1 lends connections that it is closing; no upstream issue found."""
        pool: Any = self
        closing, pool._available_connections = pool._available_connections, []  # noqa: SLF001
        if inuse_connections:
            closing += pool._in_use_connections  # noqa: SLF001
        for connection in closing:
            await connection.disconnect()


class AsyncPool(_QueuingPool, redis.asyncio.ConnectionPool):
    """Same as Pool, for asyncio."""


class AsyncSentinelPool(_ToPrimary, _QueuingPool, redis.asyncio.sentinel.SentinelConnectionPool):
    """Same as SentinelPool, for asyncio."""


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
                return _reply(connection)
            return self.parse_response(connection, args[0], **options)  # type: ignore[no-untyped-call] # same
        finally:
            pool.release(connection)


def _reply(connection: Any) -> Any:
    """Read a reply, in RESP2 by hiredis, as our clients are built. Raises redis-py's errors.

    What redis-py does besides where a call fails, the pool does.
    """
    sock, parser = connection._sock, connection._parser  # noqa: SLF001
    reader, buffer = parser._reader, parser._buffer  # noqa: SLF001
    if sock is None or reader is None:
        raise redis.ConnectionError("closed by another thread")
    try:
        while (reply := reader.gets(False)) is NOT_ENOUGH_DATA:
            received_bytes = sock.recv_into(buffer)
            if not received_bytes:
                raise redis.ConnectionError("closed by the server")
            reader.feed(buffer, 0, received_bytes)
    except TimeoutError as error:
        raise redis.TimeoutError("no reply in time") from error
    except OSError as error:
        raise redis.ConnectionError(str(error)) from error
    if isinstance(reply, Exception):
        try:
            raise reply
        finally:
            del reply  # a traceback that holds itself would keep all that the call held
    return reply


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
