"""One client in many threads, processes and loops; a pool that is used up; connections that the server has closed."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff

from redis_sessions import (
    AsyncSessionStore,
    Held,
    SessionStore,
    SessionStoreError,
    StoreSettings,
    StoreUnavailable,
    Turn,
    pools,
)
from redis_sessions.exchange import Link
from redis_sessions.server import EmbeddedServer
from tests.servers import wait_until
from tests.stores import Blocking, Place

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


class TestHungUp:
    """The server closes connections that lie idle: the next call finds out before it sends, so even a count is exact."""

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

    def test_while_the_loop_was_busy_with_something_else(self, place, settings, ledger, monkeypatch):
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

    @pytest.mark.parametrize("flavour", ["sync", "async"])
    def test_by_the_servers_own_timeout(self, flavour, namespace, ledger, loop):
        tally = ledger("idle connection closed by the server")
        with EmbeddedServer(extra={"timeout": "1"}) as server, redis.Redis.from_url(server.url) as raw:
            settings = StoreSettings(namespace=namespace)
            if flavour == "sync":
                store = SessionStore.from_url(server.url, settings)
            else:
                store = Blocking(AsyncSessionStore.from_url(server.url, settings), loop)
            for n in range(1, 2):
                assert store.increment_resume_failures() == n
                tally.injected += 1
                tally.operations += 1
                wait_until(lambda: raw.info("clients")["connected_clients"] == 1, "the idle connection is closed")
            assert store.increment_resume_failures() == 2
            store.close()
        tally.check()

    @pytest.mark.parametrize("flavour", ["sync", "async"])
    def test_one_that_leads_nowhere_any_more(self, flavour, valkey, settings, ledger, loop, namespace, monkeypatch):
        """As behind a firewall that forgot it: nothing was closed, nothing is answered. A PING finds out."""
        monkeypatch.setattr(pools, "HEARD_OF_S", 0.0)
        tally = ledger("idle connection closed by the server")
        with Relay(urlsplit(valkey.url).port) as relay:
            settings = settings.model_copy(update={"socket_timeout_ms": 200})
            if flavour == "sync":
                store = SessionStore.from_url(relay.url, settings)
            else:
                store = Blocking(AsyncSessionStore.from_url(relay.url, settings), loop)
            assert store.increment_resume_failures() == 1
            relay.forget()
            tally.injected += 1
            tally.operations += 1
            assert store.increment_resume_failures() == 2
            store.close()
        delete_all(valkey, namespace)
        tally.check()


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


def kill_all(place: Place) -> None:
    """Close every other connection to each server of a place."""
    nodes = place.raw.get_primaries() if isinstance(place.raw, redis.RedisCluster) else [None]
    for node in nodes:
        target = {} if node is None else {"target_nodes": node}
        place.raw.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes", **target)


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

    @pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
    @pytest.mark.filterwarnings("ignore:loop is closed:ResourceWarning")
    def test_a_callers_client_says_what_to_do(self, valkey, settings, loop, namespace):
        client = redis.asyncio.Redis.from_url(valkey.url, retry=redis.asyncio.retry.Retry(NoBackoff(), 0))
        store = AsyncSessionStore(client, settings)
        loop.run(store.set("a", "ID"))
        with pytest.raises(SessionStoreError, match="make one AsyncSessionStore for each event loop"):
            asyncio.run(store.get("a"))
        loop.run(client.aclose())
        delete_all(valkey, namespace)
        gc.collect()
