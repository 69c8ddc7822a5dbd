"""One client in forked processes: parent and child never read each other's replies, and a child renews nothing."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from redis_sessions import AsyncSessionStore, Held, SessionStore, StoreSettings, Turn
from redis_sessions.keys import Keys
from tests.faults.clients.own_keys import aread, read
from tests.forks import CHILD_DEADLINE_S, FORKS, alone, harm_of, in_child

forking = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


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

    def test_a_child_of_a_turn_renews_nothing(self, valkey, clean, namespace, ledger):
        """It may use the store; the lease stays its parent's, and lapses with its parent's turn."""
        tally = ledger("process forked in the middle of calls")
        settings = StoreSettings(namespace=namespace, lease_ms=300)
        go_on, end = os.pipe()

        def child(store: SessionStore) -> int:
            harm = read(store, "child", 5)
            harm += threading.active_count() != 1
            os.read(go_on, 1)
            return harm + (store.get("turn") != "after")

        with SessionStore.from_url(clean(valkey).url, settings) as store:
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
        os.close(go_on)
        os.close(end)
        tally.check()


@pytest.fixture(params=FORKS)
def fork(request):
    return FORKS[request.param]


@forking
class TestWithoutHooks:
    @alone
    def test_after_calls(self, place, settings, ledger, fork):
        """By the store, and by its client, of which the child may have taken hold before."""
        tally = ledger("process forked in the middle of calls")
        with SessionStore.from_url(place.url, settings) as store:
            read(store, "parent", 1)
            client, key = store.client, Keys(settings.namespace).session_id("parent-0")

            def child(who: str) -> int:
                wrong = sum(client.get(key) != b"parent.0" for _ in range(20))
                return wrong + read(store, who, 20)

            children = [in_child(lambda who=f"child{n}": child(who), fork) for n in range(3)]
            for _ in range(20):
                tally.wrong += store.get("parent-0") != "parent.0"
            tally.wrong += sum(map(harm_of, children))
            tally.injected += 3
            tally.operations += 260
        tally.check()

    @pytest.mark.parametrize("first", ["returns", "calls"])
    @alone
    def test_in_the_middle_of_a_call(self, valkey, clean, settings, ledger, fork, first):
        """As in a signal handler. The child may end the call, or make another one before."""
        tally = ledger("process forked in the middle of calls")
        with SessionStore.from_url(clean(valkey).url, settings) as store:
            store.set("a", "ID")
            pool = store.client.connection_pool
            lent = pool.get_connection()
            lent.send_command("GET", Keys(settings.namespace).session_id("a"))

            def child() -> int:
                harm = read(store, "child", 5) if first == "calls" else 0
                pool.release(lent)
                mine = pool.get_connection()
                harm += mine is lent
                pool.release(mine)
                return harm + read(store, "child", 5)

            tally.wrong += harm_of(in_child(child, fork))
            tally.wrong += lent.read_response() != b"ID"
            pool.release(lent)
            tally.wrong += pool.get_connection() is not lent
            tally.injected += 1
            tally.operations += 31
        tally.check()
