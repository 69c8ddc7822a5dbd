"""Connections that died while they lay idle: the next call finds out before it sends, so that even a count is exact."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from typing import Self
from urllib.parse import urlsplit

import pytest
import redis

from redis_sessions import AsyncSessionStore, SessionStore
from redis_sessions.client import pool as pools
from redis_sessions.server import EmbeddedServer
from tests.servers import wait_until
from tests.stores import Place, opened

KINDS = pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore], ids=["sync", "async"])


def kill_all(place: Place) -> None:
    """Close every other connection to each server of a place."""
    nodes = place.raw.get_primaries() if isinstance(place.raw, redis.RedisCluster) else [None]
    for node in nodes:
        target = {} if node is None else {"target_nodes": node}
        place.raw.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes", **target)


class Relay:
    """Passes connections on to a server; those that it forgets stay open and lead nowhere."""

    def __init__(self, port: int | None) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._passing: list[list[socket.socket]] = []
        self._forgotten: list[socket.socket] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.send(b"x")
        self._thread.join()
        ends = [end for pair in self._passing for end in pair]
        for each in (self._listener, self._wake, self._woken, *ends, *self._forgotten):
            each.close()

    def forget(self) -> None:
        self._wake.send(b"f")
        wait_until(lambda: bool(self._forgotten), "the relay forgets")

    def _run(self) -> None:
        while True:
            ends = {end: other for a, b in self._passing for end, other in ((a, b), (b, a))}
            ready, _, _ = select.select([self._listener, self._woken, *ends], [], [])
            for one in ready:
                if one is self._woken:
                    if one.recv(1) == b"x":
                        return
                    self._forgotten += [end for pair in self._passing for end in pair]
                    self._passing = []
                    break
                if one is self._listener:
                    onward = socket.create_connection(("127.0.0.1", self._port))
                    self._passing.append([one.accept()[0], onward])
                elif data := one.recv(65_536):
                    ends[one].sendall(data)
                else:
                    self._forgotten += [one, ends[one]]
                    self._passing = [pair for pair in self._passing if one not in pair]


class TestHungUp:
    ROUNDS = 40

    def test_in_a_sync_client(self, place, settings, ledger):
        tally = ledger("idle connection closed by the server")
        with SessionStore.from_url(place.url, settings) as store:
            store.set("a", "ID")
            for n in range(1, self.ROUNDS + 1):
                kill_all(place)
                tally.injected += 1
                tally.operations += 3
                tally.lost += store.increment_resume_failures() != n
                kill_all(place)
                tally.wrong += store.get("a") != "ID"
                kill_all(place)
                tally.wrong += store.peek("a").session_id != "ID"
        tally.check()

    def test_in_an_async_client(self, place, settings, ledger):
        tally = ledger("idle connection closed by the server")

        async def main() -> None:
            async with AsyncSessionStore.from_url(place.url, settings) as store:
                await store.set("a", "ID")
                for n in range(1, self.ROUNDS + 1):
                    await asyncio.to_thread(kill_all, place)
                    tally.injected += 1
                    tally.operations += 3
                    tally.lost += await store.increment_resume_failures() != n
                    await asyncio.to_thread(kill_all, place)
                    tally.wrong += await store.get("a") != "ID"
                    await asyncio.to_thread(kill_all, place)
                    tally.wrong += (await store.peek("a")).session_id != "ID"

        asyncio.run(main())
        tally.check()

    def test_while_the_loop_was_busy(self, place, settings, ledger, monkeypatch):
        """What the loop has not had time to read, the client gives it time to."""
        monkeypatch.setattr(pools, "FRESH_S", 0.0)
        tally = ledger("idle connection closed by the server")

        async def main() -> None:
            async with AsyncSessionStore.from_url(place.url, settings) as store:
                await store.get("a")
                for n in range(1, 11):
                    kill_all(place)
                    tally.injected += 1
                    tally.operations += 1
                    tally.lost += await store.increment_resume_failures() != n

        asyncio.run(main())
        tally.check()

    @KINDS
    def test_the_servers_timeout(self, kind, namespace, ledger, loop):
        tally = ledger("idle connection closed by the server")
        with (
            EmbeddedServer(extra={"timeout": "1"}) as server,
            redis.Redis.from_url(server.url) as raw,
            opened(kind, server.url, loop, namespace=namespace) as store,
        ):
            assert store.increment_resume_failures() == 1
            wait_until(lambda: raw.info("clients")["connected_clients"] == 1, "the idle connection is closed")
            tally.injected += 1
            tally.operations += 1
            tally.lost += store.increment_resume_failures() != 2
        tally.check()

    @KINDS
    def test_forgotten_by_a_firewall(self, kind, valkey, clean, namespace, ledger, loop, monkeypatch):
        """As behind a firewall that forgot it: nothing was closed, nothing is answered. A PING finds out."""
        monkeypatch.setattr(pools, "PING_AFTER_S", 0.0)
        tally = ledger("idle connection closed by the server")
        with (
            Relay(urlsplit(clean(valkey).url).port) as relay,
            opened(kind, relay.url, loop, namespace=namespace, socket_timeout_ms=200) as store,
        ):
            assert store.increment_resume_failures() == 1
            relay.forget()
            tally.injected += 1
            tally.operations += 1
            tally.lost += store.increment_resume_failures() != 2
        tally.check()
