"""The lease of a turn: one run at a time, renewed while it lasts; a takeover is reported and nothing is overwritten."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from redis_sessions import Held, InvalidSessionID, Lease, LeaseHeld, StoreSettings, StoreUnavailable, Turn, Verdict
from redis_sessions.keys import Keys
from redis_sessions.operations.command import Command
from redis_sessions.operations.conversation import Operations
from redis_sessions.resume import flow as resume
from redis_sessions.resume.flow import Pause
from redis_sessions.testing import fake_async_store
from tests.over import over
from tests.resume.stand_in import KEY, Agent, AgentError, says
from tests.servers import wait_until
from tests.stores import wait_for_renewal


def test_no_other_worker_runs_meanwhile_and_the_holder_is_named(store, free):
    def run(session_id):
        with pytest.raises(LeaseHeld) as caught:
            store.resume(KEY, lambda _: pytest.fail("ran twice"))
        assert caught.value.holder
        assert 0 < caught.value.remaining_ms <= store.settings.lease_ms
        return Turn("E", None)

    assert store.resume(KEY, run).saved
    assert free()


def test_a_waiting_worker_gets_its_turn(store, monkeypatch):
    asked_in_vain = threading.Event()
    monkeypatch.setattr(resume, "Pause", lambda seconds: asked_in_vain.set() or Pause(seconds))

    def first(session_id):
        waiting.append(pool.submit(store.resume, KEY, Agent("E"), wait_ms=30_000))
        assert asked_in_vain.wait(30)
        return Turn("E", None)

    with ThreadPoolExecutor(1) as pool:
        waiting = []
        store.resume(KEY, first)
        second = waiting[0].result()
    assert (second.how, second.previous) == ("resumed", "E")


def test_waiting_ends_after_wait_ms(store):
    claim = store.acquire(KEY)
    with pytest.raises(LeaseHeld) as caught:
        store.resume(KEY, lambda _: pytest.fail("must not run"), wait_ms=60)
    assert caught.value.holder == claim.token


def test_it_is_renewed_while_the_turn_lasts(make_store, raw, namespace):
    store = make_store(lease_ms=90)

    def run(session_id):
        wait_for_renewal(raw, namespace, KEY)
        return Turn("E", None)

    assert store.resume(KEY, run).saved


def test_after_a_takeover_nothing_is_overwritten_and_the_result_says_so(store, counters, lapse):
    def run(session_id):
        lapse(KEY)
        store.save(store.acquire(KEY), "S")
        return Turn("E", "kept")

    result = store.resume(KEY, run)
    assert (result.value, result.session_id, result.saved) == ("kept", "E", False)
    assert result.reason == "not saved: another worker took the conversation over"
    assert store.get(KEY) == "S"
    assert counters() == (0, 0, 1)


@pytest.mark.parametrize("answer", [None, AgentError("boom")])
def test_a_takeover_with_nothing_to_save_is_logged(store, lapse, answer, caplog):
    agent = Agent(answer)

    def run(session_id):
        lapse(KEY)
        assert isinstance(store.acquire(KEY), Lease)
        return agent(session_id)

    if answer is None:
        assert not store.resume(KEY, run).saved
    else:
        with pytest.raises(AgentError):
            store.resume(KEY, run)
    assert "was taken over before its turn ended" in caplog.text
    assert isinstance(store.acquire(KEY), Held)


def test_a_lapsed_lease_that_nobody_took_still_saves(store, lapse):
    def run(session_id):
        lapse(KEY)
        return Turn("E", None)

    assert store.resume(KEY, run).saved
    assert store.get(KEY) == "E"


def test_two_threads_of_one_process_never_share_a_lease(store):
    alone, ran = threading.Lock(), []

    def run(session_id):
        assert alone.acquire(blocking=False)
        try:
            assert isinstance(store.acquire(KEY), Held)  # and a round trip in which another run would be met
            ran.append(session_id)
            return Turn(f"E{len(ran)}", None)
        finally:
            alone.release()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: store.resume(KEY, run, wait_ms=60_000), range(6)))
    assert ran == [None, "E1", "E2", "E3", "E4", "E5"]


def test_without_a_lease_the_table_is_the_same(store, counters):
    claim = store.acquire(KEY)
    assert store.resume(KEY, Agent("E"), lease=False).saved
    assert store.resume(KEY, Agent("E"), lease=False).how == "resumed"
    restarted = store.resume(KEY, Agent(AgentError(), "F"), lease=False, judge=says(Verdict.gone))
    assert (restarted.how, store.get(KEY)) == ("restarted", "F")
    assert counters() == (1, 1, 2)
    assert store.release(claim)


def test_without_a_lease_an_invalid_value_is_nothing_to_resume(store, raw, namespace):
    raw.lpush(Keys(namespace).session_id(KEY), "x")
    raw.pexpire(Keys(namespace).session_id(KEY), 60_000)
    result = store.resume(KEY, Agent("E"), lease=False)
    assert (result.how, result.saved) == ("fresh", True)
    assert result.reason


class TestOfABlock:
    """`with store.lease(key) as lease:`, around the single steps."""

    def test_it_keeps_others_out_and_is_released_at_the_end_however_that_comes(self, store, free):
        store.set(KEY, "R")
        with store.lease(KEY) as lease:
            assert lease.session_id == "R"
            with pytest.raises(LeaseHeld) as caught, store.lease(KEY):
                pytest.fail("must not run")
            assert (caught.value.holder, caught.value.key) == (lease.token, KEY)
            assert re.search(r" for \d+ s more: ", str(caught.value))
        assert free()
        with pytest.raises(AgentError), store.lease(KEY):
            raise AgentError
        assert free()

    @pytest.mark.parametrize("step", ["save", "fail", "release"])
    def test_a_step_that_ends_it_lets_others_in_at_once(self, make_store, raw, namespace, caplog, step):
        store = make_store(lease_ms=90)
        with store.lease(KEY) as lease:
            assert getattr(store, step)(lease, *["E"] if step == "save" else [])
            other = store.acquire(KEY)
            assert isinstance(other, Lease)
            with store.lease("clock"):
                for _ in range(2):
                    wait_for_renewal(raw, namespace, "clock")
        assert store.release(other)
        assert not [each for each in caplog.messages if "taken over" in each]

    def test_it_is_renewed_while_the_block_lasts_and_after_a_step_that_failed(self, make_store, raw, namespace):
        store = make_store(lease_ms=90)
        with store.lease(KEY) as lease:
            with pytest.raises(InvalidSessionID):
                store.save(lease, "two words")
            wait_for_renewal(raw, namespace, KEY)
            assert store.save(lease, "E")

    @over("step", ["save", "fail", "release"])
    def test_it_is_renewed_after_a_step_that_failed_as_its_renewal_fell_due(
        self, make_store, raw, namespace, monkeypatch, step
    ):
        def fail_late(ops, lease, *_):
            for _ in range(2):
                clock = ops.keys.lease("clock")
                raw.pexpire(clock, 40 * 86_400_000)
                while raw.pttl(clock) > 31 * 86_400_000:
                    yield [Command(("GET", ops.keys.session_id(KEY)), KEY)]
            raise StoreUnavailable("away")

        store = make_store(lease_ms=90)
        with store.lease("clock"), store.lease(KEY) as lease:
            with monkeypatch.context() as patched:
                patched.setattr(Operations, step, fail_late)
                with pytest.raises(StoreUnavailable, match="away"):
                    getattr(store, step)(lease, *["E"] if step == "save" else [])
            wait_for_renewal(raw, namespace, KEY)
            assert store.save(lease, "E")

    def test_a_takeover_is_logged_and_left_alone(self, make_store, raw, namespace, caplog):
        store = make_store(lease_ms=90)
        with store.lease(KEY) as lease:
            raw.set(Keys(namespace).lease(KEY), "another", px=40 * 86_400_000)
            wait_until(lambda: any("was taken over" in each for each in caplog.messages), "a renewal in vain")
            assert not store.save(lease, "E")
        assert raw.get(Keys(namespace).lease(KEY)) in (b"another", "another")


@pytest.mark.parametrize(("lease_ms", "logged"), [(60, 1), (60_000, 0)])
def test_an_event_loop_that_is_blocked_longer_than_the_lease_is_logged(loop, caplog, lease_ms, logged):
    async def run(session_id):
        time.sleep(0.2)  # noqa: ASYNC251 - the mistake
        return Turn("E", None)

    async def misused():
        async with fake_async_store(StoreSettings(lease_ms=lease_ms)) as store:
            result = await store.resume(KEY, run)
            async with store.lease(KEY) as lease:
                await run(None)
                await store.save(lease, "E")
            return result

    assert loop.run(misused()).saved
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == logged * 2
    assert all("the event loop was blocked for " in each and "asyncio.to_thread" in each for each in said)
