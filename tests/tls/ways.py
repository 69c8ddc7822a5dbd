"""Both flavours, what they refuse, and a port on their way to a server that counts who comes. No tests."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

import pytest

from redis_sessions import AsyncSessionStore, SessionStore, StoreUnavailable

KINDS = pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])


@contextmanager
def door(port, loop, *, shut=0):
    """A port that leads to another one, and the list of who came; the first few it lets speak, and hangs up on."""
    came = []

    async def lead(reader, writer):
        came.append(writer.get_extra_info("peername"))
        if len(came) <= shut:
            await reader.read(1)
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)

        async def carry(source, sink):
            try:
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass  # one side hung up, and so will this one
            sink.close()

        await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))

    listener = loop.run(start(lead))
    try:
        yield listener.sockets[0].getsockname()[1], came
    finally:
        loop.run(stop(listener))


async def start(lead):
    return await asyncio.start_server(lead, "127.0.0.1", 0)


async def stop(listener):
    listener.close()
    await listener.wait_closed()


def refused():
    return pytest.raises(StoreUnavailable, match=r"\(TLS failed\): check its certificate")
