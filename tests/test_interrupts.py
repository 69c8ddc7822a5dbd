"""Ctrl-C, cancellation and fork in the middle of a turn: the lease is given back, and nobody else's is touched."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from redis_sessions import AsyncSessionStore, Held, Lease, SessionStore, StoreSettings, Turn

KEY = "acme/shop#42"


@pytest.fixture
def settings(namespace, valkey):
    yield StoreSettings(namespace=namespace, lease_ms=60_000)
    for key in valkey.raw.scan_iter(f"{namespace}:*"):
        valkey.raw.delete(key)


@pytest.fixture
def store(valkey, settings):
    with SessionStore.from_url(valkey.url, settings) as store:
        yield store


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BaseException])
def test_any_exception_returns_the_lease(store, error):
    store.set(KEY, "R")

    def run(session_id):
        assert isinstance(store.acquire(KEY), Held)
        raise error

    with pytest.raises(error):
        store.resume(KEY, run)
    assert isinstance(store.acquire(KEY), Lease)
    assert store.get(KEY) == "R"


def test_ctrl_c_by_a_real_signal(store):
    def run(session_id):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(30)

    with pytest.raises(KeyboardInterrupt):
        store.resume(KEY, run)
    assert isinstance(store.acquire(KEY), Lease)


def test_a_claim_interrupted_before_its_reply_is_returned(store, monkeypatch):
    send, calls = store.client.execute_command, []

    def execute_command(*args, **options):
        reply = send(*args, **options)
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return reply

    store.acquire("warm-up")  # so that the script is loaded, and the first call is the claim
    monkeypatch.setattr(store.client, "execute_command", execute_command)
    with pytest.raises(KeyboardInterrupt):
        store.resume(KEY, lambda _: pytest.fail("must not run"))
    monkeypatch.undo()
    assert isinstance(store.acquire(KEY), Lease)


def test_a_forked_child_leaves_its_parents_lease_alone(store, valkey, settings):
    """Renewals are the parent's; and a child that unwinds through `resume` releases nothing."""

    def run(session_id):
        child = os.fork()
        if child == 0:
            raise SystemExit  # unwinds through resume, in the child
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        with SessionStore.from_url(valkey.url, settings) as other:
            assert isinstance(other.acquire(KEY), Held)
        return Turn("E", None)

    parent = os.getpid()
    try:
        assert store.resume(KEY, run).saved
    except SystemExit:
        assert os.getpid() != parent
        os._exit(7 if threading.active_count() == 1 else 8)
    assert store.get(KEY) == "E"


class TestCancellation:
    @pytest.fixture
    def play(self, valkey, settings):
        """Run a coroutine function on a store of its own loop."""

        def play(scene):
            async def main():
                async with AsyncSessionStore.from_url(valkey.url, settings) as store:
                    await scene(store)

            asyncio.run(main())

        return play

    def test_while_the_agent_runs(self, play):
        async def scene(store):
            running = asyncio.Event()

            async def run(session_id):
                running.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(store.resume(KEY, run))
            await running.wait()
            assert isinstance(await store.acquire(KEY), Held)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert isinstance(await store.acquire(KEY), Lease)

        play(scene)

    def test_again_while_the_lease_is_being_returned(self, play):
        async def scene(store):
            running = asyncio.Event()

            async def run(session_id):
                running.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    asyncio.get_running_loop().call_soon(task.cancel)

            task = asyncio.create_task(store.resume(KEY, run))
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert isinstance(await store.acquire(KEY), Lease)

        play(scene)

    def test_while_waiting_for_another(self, play):
        async def scene(store):
            holder = await store.acquire(KEY)
            task = asyncio.create_task(store.resume(KEY, lambda _: pytest.fail("must not run"), wait_ms=60_000))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await store.release(holder)

        play(scene)

    def test_at_any_moment(self, play):
        """Cancelled after every possible number of loop iterations: never a lease left, never a run repeated."""

        async def scene(store):
            await store.set(KEY, "R")
            for moments in range(60):
                runs = []

                async def run(session_id, runs=runs):
                    runs.append(session_id)
                    await asyncio.sleep(0)
                    return Turn(session_id, None)

                task = asyncio.create_task(store.resume(KEY, run))
                for _ in range(moments):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert len(runs) <= 1
                lease = await store.acquire(KEY)
                assert isinstance(lease, Lease), moments
                assert lease.session_id == "R"
                await store.release(lease)

        play(scene)

    def test_a_timeout_of_the_callers(self, play):
        async def scene(store):
            async def run(session_id):
                await asyncio.Event().wait()

            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await store.resume(KEY, run)
            assert isinstance(await store.acquire(KEY), Lease)

        play(scene)


def test_no_task_outlives_the_turn(valkey, settings):
    async def main():
        async with AsyncSessionStore.from_url(valkey.url, settings) as other:

            async def run(session_id):
                return Turn("E", None)

            before = asyncio.all_tasks()
            for n in range(20):
                await other.resume(f"key{n}", run)
            assert asyncio.all_tasks() == before

    asyncio.run(main())
