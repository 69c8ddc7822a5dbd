"""Signals and cancellations at any moment: no mixed-up replies, no lost connections, and everything works afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
import redis

from redis_sessions import AsyncSessionStore, Held, SessionStore, StoreSettings, Turn
from redis_sessions.client.pool import CheckedConnection
from tests.faults.ledger import Tally
from tests.faults.steps import CONNECTIONS, KEYS, Alarm, Interrupted, Steps, async_store, clients_of, sync_store
from tests.servers import wait_until

# pytest-timeout's own way is the signal that these tests need.
by_thread = pytest.mark.timeout(120, method="thread")
long = [pytest.mark.long, pytest.mark.timeout(1800, method="thread")]


@pytest.fixture
def settings(namespace: str) -> StoreSettings:
    return StoreSettings(namespace=namespace, max_connections=CONNECTIONS, deadline_ms=3_000)


@pytest.fixture
def busy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes that leave this one less than its share of the processor, so that it waits where else it doesn't."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(request.param)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@by_thread
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # interrupted as redis-py opened it; Python closes it
@pytest.mark.parametrize(
    ("kind", "count", "busy"),
    [
        ("valkey", 5_000, 0),
        ("valkey", 1_000, 2),
        ("cluster", 500, 0),
        ("sentinel", 500, 0),
        pytest.param("valkey", 200_000, 0, marks=long),
        pytest.param("valkey", 50_000, 2, marks=long),
    ],
    indirect=["busy"],
)
@pytest.mark.usefixtures("busy")
def test_signals_at_random_moments(kind, count, places, clean, settings, ledger):
    place = clean(places.get("cluster" if kind == "cluster" else "valkey"))
    tally = ledger("signal in the middle of a call")
    steps = Steps(tally)
    before = clients_of(place)
    with sync_store(kind, place, settings) as store, Alarm() as alarm:
        for number in range(KEYS):
            store.set(f"key{number}", steps.fresh(number))
        while alarm.fired < count:
            with contextlib.suppress(Interrupted):
                alarm.arm(within_s=300e-6)
                with steps.counted():
                    steps.step(store, random.randrange(KEYS))
                alarm.disarm()
        alarm.disarm()
        tally.injected = alarm.fired
        values = [store.get(f"key{number}") for number in range(KEYS)]
        counted = store.resume_failures_total()
        wait_until(lambda: clients_of(place) - before <= CONNECTIONS, "connections that were dropped are closed", 5)
        steps.end(values, counted, clients_of(place) - before)
    gc.collect()  # sockets that a signal has torn out of redis-py, while the warnings about them are ignored


@pytest.mark.parametrize(
    ("kind", "count", "busy"),
    [
        ("valkey", 5_000, 0),
        ("valkey", 1_000, 2),
        ("cluster", 500, 0),
        ("sentinel", 500, 0),
        pytest.param("valkey", 200_000, 0, marks=long),
        pytest.param("cluster", 50_000, 0, marks=long),
    ],
    indirect=["busy"],
)
@pytest.mark.usefixtures("busy")
def test_cancellations_at_random_moments(kind, count, places, clean, settings, ledger):
    """Each takes effect: a cancelled task ends as cancelled, never with a result."""
    place = clean(places.get("cluster" if kind == "cluster" else "valkey"))
    tally = ledger("task cancelled in the middle of a call")
    steps = Steps(tally)
    before = clients_of(place)
    workers = 4  # each with its own keys

    async def cancel(store: AsyncSessionStore, worker: int) -> None:
        while tally.injected < count:
            number = random.randrange(worker, KEYS, workers)
            with steps.counted():
                if random.randrange(4):
                    await by_hand(steps.astep(store, number))
                else:
                    await by_deadline(steps.astep(store, number))

    async def by_hand(step: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(step)
        for _ in range(random.randrange(24)):
            await asyncio.sleep(0)
        asked = task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            tally.injected += 1
        else:
            steps.agree(not asked)

    async def by_deadline(step: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(random.uniform(0, 0.0015)):
                await step
        except TimeoutError:
            tally.injected += 1

    async def main() -> None:
        async with async_store(kind, place, settings) as store:
            for number in range(KEYS):
                await store.set(f"key{number}", steps.fresh(number))
            await asyncio.gather(*(cancel(store, worker) for worker in range(workers)))
            values = [await store.get(f"key{number}") for number in range(KEYS)]
            counted = await store.resume_failures_total()
            await asyncio.to_thread(
                wait_until, lambda: clients_of(place) - before <= CONNECTIONS, "connections that were dropped are closed", 5
            )
            steps.end(values, counted, clients_of(place) - before)

    asyncio.run(main())


@by_thread
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # see above
@pytest.mark.parametrize("count", [1_000, pytest.param(20_000, marks=long)])
def test_signals_at_the_end_of_a_turn(count, valkey, clean, settings, ledger, caplog):
    """What the run gave is saved, and counted at most once; the lease is released, and nobody took it over."""
    clean(valkey)
    tally = ledger("signal at the end of a turn")
    with SessionStore.from_url(valkey.url, settings) as store, Alarm() as alarm:
        while alarm.fired < count:
            key, turn = f"key{tally.operations}", Turn(f"ID-{tally.operations}", None)

            def run(_: str | None, turn: Turn[None] = turn) -> Turn[None]:
                alarm.arm(within_s=300e-6)
                return turn

            tally.operations += 1
            came_back = True
            try:
                store.resume(key, run)
                alarm.disarm()
            except Interrupted as interrupted:
                stack = traceback.walk_tb(interrupted.__traceback__)
                came_back = all(frame.f_code is not run.__code__ for frame, _ in stack)
            tally.lost += came_back and store.get(key) != turn.session_id
            tally.wrong += isinstance(store.acquire(key), Held)
        alarm.disarm()
        tally.injected = alarm.fired
        tally.lost += store.counters()["fresh_starts_total"] > tally.operations
        tally.wrong += "taken over" in caplog.text
    tally.check()
    gc.collect()  # see above


class TestBetweenSendingAndReply:
    """Between the sending and the reply, while the server takes its time: here a pool without care errs every time."""

    ROUNDS = 20
    PAUSE_MS = 5

    @pytest.fixture
    def interrupt(self, monkeypatch):
        """Make the next sending of a connection class raise once all is sent."""
        armed: list[BaseException] = []

        def interrupt(error: BaseException) -> None:
            armed.append(error)

        def send(connection, *args, _send=redis.Connection.send_packed_command, **options):
            _send(connection, *args, **options)
            if armed:
                raise armed.pop()

        async def asend(connection, *args, _send=CheckedConnection.send_packed_command, **options):
            await _send(connection, *args, **options)
            if armed:
                raise armed.pop()

        monkeypatch.setattr(redis.Connection, "send_packed_command", send)
        monkeypatch.setattr(CheckedConnection, "send_packed_command", asend)
        return interrupt

    @pytest.fixture
    def tally(self, ledger):
        tally = ledger("interrupted between sending and reply")
        yield tally
        tally.check()

    @pytest.mark.parametrize("kind", ["valkey", "sentinel"])
    @pytest.mark.parametrize("read", ["get", "peek"])
    def test_a_signal(self, kind, read, valkey, clean, settings, interrupt, tally):
        with sync_store(kind, clean(valkey), settings) as store:
            for name in ("alice", "bob"):
                store.set(name, f"ID-{name}")
            for _ in range(self.ROUNDS):
                valkey.raw.client_pause(self.PAUSE_MS)
                tally.injected += 1
                interrupt(Interrupted())
                with pytest.raises(Interrupted):
                    getattr(store, read)("alice")
                tally.operations += 1
                tally.wrong += store.get("bob") != "ID-bob"

    @pytest.mark.parametrize("kind", ["valkey", "sentinel"])
    @pytest.mark.parametrize("read", ["get", "peek"])
    def test_a_cancellation(self, kind, read, valkey, clean, settings, interrupt, tally):
        async def main() -> None:
            async with async_store(kind, clean(valkey), settings) as store:
                for name in ("alice", "bob"):
                    await store.set(name, f"ID-{name}")
                for _ in range(self.ROUNDS):
                    await asyncio.to_thread(valkey.raw.client_pause, self.PAUSE_MS)
                    tally.injected += 1
                    interrupt(asyncio.CancelledError())
                    with pytest.raises(asyncio.CancelledError):
                        await getattr(store, read)("alice")
                    tally.operations += 1
                    tally.wrong += await store.get("bob") != "ID-bob"

        asyncio.run(main())


def test_a_signal_handler_that_uses_the_store(valkey, clean, settings, ledger):
    """As one that gives a lease back on SIGTERM: a call in the middle of a call."""
    clean(valkey)
    tally = ledger("signal in the middle of a call")
    with SessionStore.from_url(valkey.url, settings) as store:
        store.set("alice", "ID-alice")
        store.set("bob", "ID-bob")

        def handle(*_: object) -> None:
            tally.injected += 1
            tally.wrong += store.get("bob") != "ID-bob"

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            main = threading.main_thread().ident
            for _ in range(200):
                ringer = threading.Timer(random.uniform(0, 0.001), signal.pthread_kill, (main, signal.SIGUSR1))
                handled = tally.injected
                ringer.start()
                while tally.injected == handled:
                    tally.operations += 1
                    tally.wrong += store.get("alice") != "ID-alice"
                ringer.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
        tally.check()


def test_the_ledger_keeps_the_first_stack_of_each_harm():
    tally = Tally("a fault", injected=1, operations=1)
    for message in ("the first", "the second"):
        try:
            raise ValueError(message)
        except ValueError:
            tally.untyped += 1
    tally.wrong += 1
    with pytest.raises(AssertionError) as failure:
        tally.check()
    text = str(failure.value)
    assert "the first" in text
    assert "the second" not in text
    assert "tally.wrong += 1" in text
