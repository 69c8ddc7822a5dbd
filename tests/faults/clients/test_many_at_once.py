"""One client in many threads and tasks: each has its own replies, and a pool that stays used up says so."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from redis_sessions import AsyncSessionStore, SessionStore, StoreSettings, StoreUnavailable
from redis_sessions.client.execute import Link
from tests.faults.clients.own_keys import aread, read

# A counter is not sent again when its reply is late, as it may be on a busy machine.
PATIENT = {"socket_timeout_ms": 20_000, "deadline_ms": 60_000}


class TestManyAtOnce:
    @pytest.mark.parametrize("connections", [100, 16, 1])
    def test_sixty_four_threads_on_one_store(self, place, namespace, connections, ledger):
        tally = ledger("more threads than connections")
        settings = StoreSettings(namespace=namespace, max_connections=connections, **PATIENT)
        with SessionStore.from_url(place.url, settings) as store, ThreadPoolExecutor(64) as pool:
            start = threading.Barrier(64)

            def work(n: int) -> int:
                start.wait()
                store.increment_resume_failures()
                return read(store, f"t{n}", 5)

            tally.wrong += sum(pool.map(work, range(64)))
            tally.injected += 64
            tally.operations += 64 * 16
            tally.lost += store.resume_failures_total() != 64
        tally.check()

    @pytest.mark.parametrize("connections", [16, 1])
    def test_two_hundred_tasks(self, place, namespace, connections, ledger):
        tally = ledger("more threads than connections")
        settings = StoreSettings(namespace=namespace, max_connections=connections, **PATIENT)

        async def main() -> None:
            async with AsyncSessionStore.from_url(place.url, settings) as store:

                async def work(n: int) -> int:
                    await store.increment_resume_failures()
                    return await aread(store, f"t{n}", 1)

                tally.wrong += sum(await asyncio.gather(*(work(n) for n in range(200))))
                tally.lost += await store.resume_failures_total() != 200

        asyncio.run(main())
        tally.injected += 200
        tally.operations += 200 * 4
        tally.check()

    def test_calls_while_spare_connections_are_being_closed(self, valkey, clean, namespace, ledger, monkeypatch):
        """As when Sentinel names another primary: a connection that is being closed, which takes a while, is not lent."""
        tally = ledger("more threads than connections")
        clean(valkey)

        async def wait_closed(writer, _wait_closed=asyncio.StreamWriter.wait_closed):
            for _ in range(20):
                await asyncio.sleep(0)
            await _wait_closed(writer)

        monkeypatch.setattr(asyncio.StreamWriter, "wait_closed", wait_closed)

        async def main() -> None:
            async with AsyncSessionStore.from_url(valkey.url, StoreSettings(namespace=namespace)) as store:
                for n in range(50):
                    await asyncio.gather(*(store.get(f"k{m}") for m in range(4)))
                    closing = asyncio.create_task(store.client.connection_pool.disconnect(inuse_connections=False))
                    await asyncio.sleep(0)
                    counted = await asyncio.gather(*(store.increment_resume_failures() for _ in range(4)))
                    tally.lost += sorted(counted) != [4 * n + 1, 4 * n + 2, 4 * n + 3, 4 * n + 4]
                    await closing
                    tally.injected += 1
                    tally.operations += 8

        asyncio.run(main())
        tally.check()

    def test_an_exhausted_pool_raises(self, valkey, clean, namespace):
        settings = StoreSettings(namespace=namespace, max_connections=1, deadline_ms=200)
        with SessionStore.from_url(clean(valkey).url, settings) as store, ThreadPoolExecutor(1) as pool:
            store.get("a")
            held = store.client.connection_pool.get_connection()
            for operation in (lambda: store.get("a"), store.increment_resume_failures, lambda: store.peek("a")):
                with pytest.raises(StoreUnavailable, match="are in use: raise max_connections"):
                    operation()
            settings = settings.model_copy(update={"deadline_ms": 10_000})
            patient = SessionStore(store.client, settings, _link=Link(deadline_s=10))
            waiting = pool.submit(patient.increment_resume_failures)
            store.client.connection_pool.release(held)
            assert waiting.result() == 1
