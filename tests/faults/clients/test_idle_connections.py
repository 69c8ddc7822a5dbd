"""Connections that died while they lay idle: the next call finds out before it sends, so that even a count is exact."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest
import redis

from redis_sessions import AsyncSessionStore, SessionStore
from redis_sessions.client import pool as pools
from redis_sessions.server import EmbeddedServer
from tests.faults.middlebox import Forget, Middlebox
from tests.servers import wait_until
from tests.stores import Place, opened

KINDS = pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore], ids=["sync", "async"])


def kill_all(place: Place) -> None:
    """Close every other connection to each server of a place."""
    nodes = place.raw.get_primaries() if isinstance(place.raw, redis.RedisCluster) else [None]
    for node in nodes:
        target = {} if node is None else {"target_nodes": node}
        place.raw.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes", **target)


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
            Middlebox(urlsplit(clean(valkey).url).port) as box,
            opened(kind, box.url, loop, namespace=namespace, socket_timeout_ms=1_000) as store,
        ):
            assert store.increment_resume_failures() == 1
            box.forget(Forget.SILENTLY)
            tally.injected += 1
            tally.operations += 1
            tally.lost += store.increment_resume_failures() != 2
        tally.check()
