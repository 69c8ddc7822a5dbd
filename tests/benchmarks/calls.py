"""Single operations: `get` and `set`, next to those of redis-py, with the bare socket as the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Final

from redis_sessions import AsyncSessionStore, SessionStore
from redis_sessions.keys import Keys
from tests.benchmarks import bare
from tests.benchmarks.lab import NAMESPACE, Lab, Server
from tests.benchmarks.machine import placed, placements
from tests.benchmarks.pairs import arepeated, repeated
from tests.benchmarks.rows import Row, timed

AT_MOST: Final = 0.85
APART: Final = ", on two cores"
KEY: Final = bare.conversation(42)
REDIS_KEY: Final = Keys(NAMESPACE).session_id(KEY).decode()
SESSION_ID: Final = next(bare.session_ids())
_GET: Final = bare.packed(b"GET", REDIS_KEY.encode())
_SET: Final = bare.packed(b"SET", REDIS_KEY.encode(), SESSION_ID.encode(), b"PX", b"%d" % bare.MAX_AGE_MS)
_GOT: Final = len(b"$36\r\n" + SESSION_ID.encode() + b"\r\n")


def get(lab: Lab) -> Iterator[Row]:
    """The live session ID of a conversation."""
    for apart in placements():
        yield from _step(
            lab, "get", _GET, _GOT, lambda store: store.get(KEY), lambda client: client.get(REDIS_KEY), apart=apart
        )


def set_(lab: Lab) -> Iterator[Row]:
    """Save a session ID."""
    for apart in placements():
        yield from _step(
            lab,
            "set",
            _SET,
            len(b"+OK\r\n"),
            lambda store: store.set(KEY, SESSION_ID),
            lambda client: client.set(REDIS_KEY, SESSION_ID, px=bare.MAX_AGE_MS),
            apart=apart,
        )


def _step(
    lab: Lab,
    name: str,
    request: bytes,
    reply_bytes: int,
    ours: Callable[[Any], Any],
    theirs: Callable[[Any], Any],
    *,
    apart: bool,
) -> Iterator[Row]:
    server = lab.server()
    server.raw.set(REDIS_KEY, SESSION_ID, px=bare.MAX_AGE_MS)
    peer = f"redis-py {name}"
    calls, cpu = lab.scale.calls, server.cpu_s
    where, at_most = (APART, None) if apart else ("", AT_MOST)

    def ask_socket() -> None:
        connection.sendall(request)
        connection.recv(reply_bytes)

    with (
        SessionStore.from_url(server.url) as store,
        closing(bare.client(server.url)) as client,
        bare.connected(server.url) as connection,
        placed(server.pid, apart=apart),
    ):
        sides = {
            "ours": repeated(lambda: ours(store), calls, cpu),
            peer: repeated(lambda: theirs(client), calls, cpu),
            "bare socket": repeated(ask_socket, calls, cpu),
        }
        contest = lab.contest(f"{name}{where}", sides)
    yield timed(f"{name}{where}", contest, "ours", peer, at_most)
    yield timed(f"{name}{where}", contest, "ours", "bare socket")
    with asyncio.Runner() as runner, placed(server.pid, apart=apart):
        astore = AsyncSessionStore.from_url(server.url)
        aclient = bare.aclient(server.url)
        loop = runner.get_loop()
        ask, close = runner.run(_stream(server, request, reply_bytes))
        sides = {
            "ours": arepeated(loop, lambda: ours(astore), calls, cpu),
            peer: arepeated(loop, lambda: theirs(aclient), calls, cpu),
            "bare stream": arepeated(loop, ask, calls, cpu),
        }
        contest = lab.contest(f"{name}, async{where}", sides)
        for ending in (astore.aclose(), aclient.aclose(), close()):
            runner.run(ending)
    yield timed(f"{name}, async{where}", contest, "ours", peer, at_most)
    yield timed(f"{name}, async{where}", contest, "ours", "bare stream")


async def _stream(server: Server, request: bytes, reply_bytes: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Two functions: send the request over an asyncio stream, and close the stream."""
    host, port = bare.address(server.url)
    reader, writer = await asyncio.open_connection(host, port)

    async def ask() -> bytes:
        writer.write(request)
        return await reader.readexactly(reply_bytes)

    async def close() -> None:
        writer.close()
        await writer.wait_closed()

    return ask, close
