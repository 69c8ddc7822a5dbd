"""One client in many threads, forked processes and event loops; and a pool that is used up."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from redis_sessions import (
    AsyncSessionStore,
    Held,
    SessionStore,
    SessionStoreError,
    StoreSettings,
    StoreUnavailable,
    Turn,
)
from redis_sessions.exchange import Link
from tests.stores import Place

CHILD_DEADLINE_S = 20
forking = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(params=["valkey", "cluster"])
def place(request, places, namespace):
    place = places.get(request.param)
    yield place
    for key in place.raw.scan_iter(f"{namespace}:*"):
        place.raw.delete(key)


@pytest.fixture
def settings(namespace: str) -> StoreSettings:
    return StoreSettings(namespace=namespace)


def in_child(work: Callable[[], int]) -> int:
    """Fork, and have the child return the harm that it saw. Its process ID."""
    child = os.fork()
    if child == 0:
        harm = 100
        try:
            signal.alarm(CHILD_DEADLINE_S)
            harm = min(work(), 99)
        finally:
            os._exit(harm)
    return child


def harm_of(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def read(store: SessionStore, who: str, times: int) -> int:
    """Write and read keys of one's own; how many reads were wrong."""
    wrong = 0
    for n in range(times):
        store.set(f"{who}-{n % 3}", f"{who}.{n}")
        wrong += store.get(f"{who}-{n % 3}") != f"{who}.{n}"
        wrong += store.peek(f"{who}-{n % 3}").session_id != f"{who}.{n}"
    return wrong


async def aread(store: AsyncSessionStore, who: str, times: int) -> int:
    wrong = 0
    for n in range(times):
        await store.set(f"{who}-{n % 3}", f"{who}.{n}")
        wrong += await store.get(f"{who}-{n % 3}") != f"{who}.{n}"
        wrong += (await store.peek(f"{who}-{n % 3}")).session_id != f"{who}.{n}"
    return wrong


@forking
class TestFork:
    def test_while_other_threads_are_in_the_middle_of_calls(self, place, settings, ledger):
        tally = ledger("process forked in the middle of calls")
        with SessionStore.from_url(place.url, settings) as store, ThreadPoolExecutor(4) as pool:
            over = threading.Event()

            def keep_reading(who: str) -> int:
                wrong = 0
                while not over.is_set():
                    wrong += read(store, who, 3)
                return wrong

            read(store, "parent", 1)
            busy = [pool.submit(keep_reading, f"thread{n}") for n in range(4)]
            for n in range(6):
                children = [in_child(lambda who=f"child{n}-{m}": read(store, who, 20)) for m in range(2)]
                tally.wrong += read(store, "parent", 20)
                tally.wrong += sum(map(harm_of, children))
                tally.injected += 2
                tally.operations += 180
            over.set()
            tally.wrong += sum(thread.result() for thread in busy)
        tally.check()

    def test_by_multiprocessing(self, place, settings, ledger):
        tally = ledger("process forked in the middle of calls")
        with SessionStore.from_url(place.url, settings) as store:
            read(store, "parent", 1)
            context = multiprocessing.get_context("fork")

            def child(who: str) -> None:
                os._exit(read(store, who, 20))

            children = [context.Process(target=child, args=(f"child{n}",)) for n in range(4)]
            for process in children:
                process.start()
            tally.wrong += read(store, "parent", 20)
            for process in children:
                process.join(CHILD_DEADLINE_S)
                tally.injected += 1
                tally.operations += 60
                tally.wrong += process.exitcode != 0
                process.kill()
                process.join()
        tally.check()

    def test_an_async_store_in_a_child_with_a_loop_of_its_own(self, place, settings, loop, ledger):
        tally = ledger("process forked in the middle of calls")
        store = AsyncSessionStore.from_url(place.url, settings)
        tally.wrong += loop.run(aread(store, "parent", 1))
        for n in range(6):
            with ThreadPoolExecutor(1) as pool:
                busy = pool.submit(loop.run, aread(store, "parent", 30))
                child = in_child(lambda who=f"child{n}": asyncio.run(aread(store, who, 20)))
                tally.wrong += busy.result() + harm_of(child)
            tally.injected += 1
            tally.operations += 150
        loop.run(store.aclose())
        tally.check()

    def test_a_child_of_a_turn_renews_nothing(self, valkey, namespace, ledger):
        """It may use the store; the lease stays its parent's, and lapses with its parent's turn."""
        tally = ledger("process forked in the middle of calls")
        settings = StoreSettings(namespace=namespace, lease_ms=300)
        go_on, end = os.pipe()

        def child(store: SessionStore) -> int:
            harm = read(store, "child", 5)
            harm += threading.active_count() != 1
            os.read(go_on, 1)
            return harm + (store.get("turn") != "after")

        with SessionStore.from_url(valkey.url, settings) as store:
            children = []

            def run(_: str | None) -> Turn[None]:
                children.append(in_child(lambda: child(store)))
                return Turn("R", None)

            assert store.resume("turn", run).saved
            lease = store.acquire("turn")
            assert not isinstance(lease, Held)
            assert store.save(lease, "after")
            os.write(end, b".")
            tally.injected += 1
            tally.operations += 15
            tally.wrong += harm_of(children[0])
            for name in ("turn", *(f"child-{n}" for n in range(3))):
                store.delete(name)
            valkey.raw.delete(f"{namespace}:counter:fresh_starts_total")
        os.close(go_on)
        os.close(end)
        tally.check()


class TestManyAtOnce:
    @pytest.mark.parametrize("connections", [100, 16, 1])
    def test_sixty_four_threads_on_one_store(self, place, namespace, connections, ledger):
        tally = ledger("more threads than connections")
        settings = StoreSettings(namespace=namespace, max_connections=connections)
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
        settings = StoreSettings(namespace=namespace, max_connections=connections)

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

    def test_a_pool_that_stays_used_up_is_said(self, valkey, namespace):
        settings = StoreSettings(namespace=namespace, max_connections=1, deadline_ms=200)
        with SessionStore.from_url(valkey.url, settings) as store, ThreadPoolExecutor(1) as pool:
            store.get("a")
            held = store.client.connection_pool.get_connection()
            for operation in (lambda: store.get("a"), store.increment_resume_failures, lambda: store.peek("a")):
                with pytest.raises(StoreUnavailable, match="are in use: raise max_connections"):
                    operation()
            settings = settings.model_copy(update={"deadline_ms": 10_000})
            patient = SessionStore(store.client, settings, link=Link(deadline_s=10))
            waiting = pool.submit(patient.increment_resume_failures)
            store.client.connection_pool.release(held)
            assert waiting.result() == 1
        valkey.raw.delete(f"{namespace}:counter:resume_failures_total")


def delete_all(place: Place, namespace: str) -> None:
    for key in place.raw.scan_iter(f"{namespace}:*"):
        place.raw.delete(key)


class TestLoops:
    """A store made once, used from several event loops: it works, or says what to do."""

    @pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:Unclosed:ResourceWarning")
    @pytest.mark.filterwarnings("ignore:loop is closed:ResourceWarning")
    def test_one_after_the_other(self, place, settings, ledger, caplog):
        tally = ledger("used from a second event loop")
        store = AsyncSessionStore.from_url(place.url, settings)
        for n in range(10):
            tally.wrong += asyncio.run(aread(store, f"loop{n}", 3))
            tally.injected += 1
            tally.operations += 9
        del store
        gc.collect()  # what the closed loops left open, while its warnings are ignored
        tally.check()

    def test_several_at_once_on_one_server(self, valkey, settings, ledger, namespace):
        tally = ledger("used from a second event loop")
        store = AsyncSessionStore.from_url(valkey.url, settings)

        async def work(n: int) -> int:
            try:
                return await aread(store, f"loop{n}", 30)
            finally:
                await store.aclose()

        with ThreadPoolExecutor(6) as pool:
            tally.wrong += sum(pool.map(lambda n: asyncio.run(work(n)), range(6)))
        tally.injected += 6
        tally.operations += 6 * 90
        delete_all(valkey, namespace)
        tally.check()

    def test_several_at_once_on_a_cluster_is_refused(self, places, settings, ledger, loop, namespace):
        place = places.get("cluster")
        tally = ledger("used from a second event loop")
        store = AsyncSessionStore.from_url(place.url, settings)
        loop.run(store.set("a", "ID"))
        for operation in (lambda: store.get("a"), lambda: store.peek("a"), store.report, store.increment_resume_failures):
            with pytest.raises(SessionStoreError, match="make one AsyncSessionStore for each event loop"):
                asyncio.run(operation())
            tally.injected += 1
            tally.operations += 1
            tally.refused += 1
        tally.wrong += loop.run(store.get("a")) != "ID"
        loop.run(store.aclose())
        delete_all(place, namespace)
        tally.check()

    def test_a_callers_client_works_or_says_what_to_do(self, valkey, namespace, ledger):
        """In a process of its own, since redis-py leaves much open then."""
        tally = ledger("used from a second event loop")
        command = [sys.executable, "-W", "ignore", "-c", SECOND_LOOP, valkey.url, namespace]
        outcomes = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
        tally.injected = tally.operations = len(outcomes)
        tally.refused = len(outcomes) - outcomes.count("ID")
        tally.untyped = len(set(outcomes) - {"ID", "SessionStoreError", "StoreUnavailable"})
        delete_all(valkey, namespace)
        tally.check()


SECOND_LOOP = """
import asyncio, sys
import redis.asyncio
from redis_sessions import AsyncSessionStore, StoreSettings

url, namespace = sys.argv[1:]
store = AsyncSessionStore(redis.asyncio.Redis.from_url(url), StoreSettings(namespace=namespace))
asyncio.run(store.set("a", "ID"))
for _ in range(5):
    try:
        print(asyncio.run(store.get("a")))
    except BaseException as error:
        print(type(error).__name__)
"""
