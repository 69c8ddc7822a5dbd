"""Leases are renewed while their turns run; a renewal that hangs delays no other lease."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress

import pytest

from redis_sessions import Lease, SessionStore, StoreSettings, Turn
from redis_sessions.operations.conversation import Operations
from redis_sessions.operations.scripts import RENEW
from redis_sessions.resume import runner
from redis_sessions.resume.runner import LeaseRenewer
from redis_sessions.testing import fake_store
from tests.faults.steps import Alarm, Interrupted
from tests.forks import FORKS, alone, harm_of, in_child
from tests.servers import wait_until
from tests.stores import wait_for_renewal


class Renewals:
    """Answers renewals without a server. By key, `outcomes`: a reply, an error or an Event to wait for; `seen`: how many."""

    def __init__(self, lease_ms=60):
        self.outcomes = {}
        self.seen = {}
        self.changed = threading.Condition()
        self.ops = Operations(StoreSettings(lease_ms=lease_ms))
        self.renewer = LeaseRenewer(self, lease_ms)

    def renewing(self, lease):
        return self.renewer.renewing(self.ops, lease)

    def __call__(self, op):
        [command] = next(op)
        outcome = self.outcomes.get(command.key, 1)
        with self.changed:
            self.seen[command.key] = self.seen.get(command.key, 0) + 1
            self.changed.notify_all()
        if isinstance(outcome, threading.Event):
            assert outcome.wait(20)
            outcome = 1
        if isinstance(outcome, Exception):
            raise outcome
        try:
            op.send([outcome])
        except StopIteration as done:
            return done.value

    def wait(self, **times):
        with self.changed:
            assert self.changed.wait_for(lambda: all(self.seen.get(key, 0) >= n for key, n in times.items()), 20), self.seen


def leases(*keys):
    return [Lease(key, f"token of {key}") for key in keys]


def test_every_lease_is_renewed_repeatedly():
    renewals = Renewals()
    with ExitStack() as stack:
        for lease in leases("a", "b", "c"):
            stack.enter_context(renewals.renewing(lease))
        renewals.wait(a=3, b=3, c=3)
    before = dict(renewals.seen)
    with renewals.renewing(*leases("d")):
        renewals.wait(d=5)
    # One may have begun before its turn ended.
    assert all(renewals.seen[key] <= before[key] + 1 for key in "abc")


def test_a_renewal_that_hangs_delays_no_other_lease():
    renewals = Renewals()
    hanging = renewals.outcomes["a"] = threading.Event()
    a, b, late = leases("a", "b", "late")
    with renewals.renewing(a), renewals.renewing(b):
        renewals.wait(a=1, b=3)
        with renewals.renewing(late):
            renewals.wait(late=2)
        assert renewals.seen["a"] == 1
        hanging.set()
        renewals.wait(a=3)


def test_a_renewal_that_hangs_delays_no_later_lease():
    renewals = Renewals()
    hanging = renewals.outcomes["a"] = threading.Event()
    a, b = leases("a", "b")
    with renewals.renewing(a):
        renewals.wait(a=1)
        with renewals.renewing(b):
            renewals.wait(b=2)
        hanging.set()


def test_a_turn_that_ended_during_its_renewal_is_renewed_no_more():
    renewals = Renewals()
    hanging = renewals.outcomes["a"] = threading.Event()
    a, b = leases("a", "b")
    with (renewal := renewals.renewing(a)):
        renewals.wait(a=1)
    renewal.over = False  # as a step of its block leaves it that fails late
    hanging.set()
    with renewals.renewing(b):
        renewals.wait(b=5)
    assert renewals.seen["a"] == 1


def test_a_run_after_a_refusal_is_renewed_though_the_last_renewal_of_the_refused_one_ends_later(
    valkey, namespace, monkeypatch
):
    """Both have the same lease."""
    renewing, go = threading.Event(), threading.Event()
    with valkey.sync(StoreSettings(namespace=namespace, lease_ms=900)) as store:
        store.set("a", "R")
        send = store.client.execute_command

        def execute_command(*args, **options):
            reply = send(*args, **options)
            if {RENEW.sha, RENEW.source} & set(args) and not renewing.is_set():
                renewing.set()
                assert go.wait(20)
            return reply

        def run(session_id):
            if session_id:
                assert renewing.wait(20)
                raise RuntimeError("No conversation found")
            go.set()
            for _ in range(2):
                wait_for_renewal(valkey.raw, namespace, "a")
            return Turn("E", None)

        monkeypatch.setattr(store.client, "execute_command", execute_command)
        result = store.resume("a", run)
    assert (result.how, result.saved) == ("restarted", True)
    valkey.raw.delete(*valkey.raw.keys(f"{namespace}:*"))


def start_none(*_):
    raise RuntimeError("can't start new thread")


def test_if_no_thread_can_be_started_the_other_leases_wait_for_a_renewal(monkeypatch):
    renewals = Renewals()
    a, b = leases("a", "b")
    with renewals.renewing(a), renewals.renewing(b):
        monkeypatch.setattr(runner, "start_new_thread", start_none)
        renewals.wait(a=3, b=3)


def test_if_no_thread_can_be_started_the_turn_runs_unrenewed_until_a_later_one_starts_it(monkeypatch, caplog):
    renewals, store = Renewals(), fake_store()
    store.set("a", "R")
    a, b = leases("a", "b")
    with ExitStack() as stack:
        with monkeypatch.context() as patched:
            patched.setattr(runner, "start_new_thread", start_none)
            for _ in range(store.settings.give_up_after + 1):  # the agent has not failed
                assert store.resume("a", Turn).how == "resumed"
            [said] = set(caplog.messages)
            assert said.startswith("lease of 'a' is not renewed, as no thread can be started (can't start new thread)")
            assert "after 30s: raise the limit of threads" in said
            stack.enter_context(renewals.renewing(a))
        stack.enter_context(renewals.renewing(b))
        renewals.wait(a=2, b=2)


def test_a_failure_is_tried_again_and_a_loss_is_not(caplog):
    renewals = Renewals()
    renewals.outcomes = {"failing": OSError("away"), "lost": 0}
    failing, lost = leases("failing", "lost")
    with renewals.renewing(failing), renewals.renewing(lost):
        renewals.wait(failing=3, lost=1)
        for said in ("lease of 'failing' was not renewed", "conversation 'lost' was taken over"):
            wait_until(lambda said=said: said in caplog.text, said)
        renewals.wait(failing=5)
    assert renewals.seen["lost"] == 1


@pytest.mark.parametrize("fork", FORKS)
@alone
def test_a_forked_child_renews_nothing_of_its_parents_and_keeps_its_own(fork, monkeypatch):
    """It lacks the parent's thread, and the one that may hold the lock. It may leave the turn, and close the store."""
    renewals = Renewals()
    mine, its = leases("mine", "its")
    monkeypatch.setattr(runner, "start_new_thread", lambda *_: 1)  # a fork beside a real one is not safe without hooks
    renewal = renewals.renewing(mine)
    renewal.__enter__()
    renewals.renewer._lock = held = threading.Lock()

    def child():
        monkeypatch.undo()
        renewal.__exit__()
        with renewals.renewing(its):
            renewals.wait(its=3)
        renewals.renewer.close()
        return "mine" in renewals.seen

    with held:
        assert harm_of(in_child(child, FORKS[fork])) == 0
    renewal.__exit__()


@pytest.fixture
def threads(monkeypatch):
    """The threads that the renewers have started, by number, and whether each still runs."""
    running = {}

    def start(function, args, _start=runner.start_new_thread):
        number = len(running)
        running[number] = True

        def note_end():
            try:
                function(*args)
            finally:
                running[number] = False

        return _start(note_end, ())

    monkeypatch.setattr(runner, "start_new_thread", start)
    return running


@pytest.mark.parametrize("end", [SessionStore.close, None])
def test_one_thread_serves_all_turns_of_a_store_until_it_is_closed_or_dropped(valkey, namespace, threads, end):
    store = SessionStore.from_url(valkey.url, StoreSettings(namespace=namespace, lease_ms=600_000 if end else 6_000))
    for n in range(50):
        store.resume("a", lambda _: Turn("E", None))
        store.for_namespace(f"{namespace}.{n % 3}").resume("a", lambda _: Turn("E", None))
    assert threads == {0: True}
    if end:
        store.for_namespace(f"{namespace}.0").close()
    else:
        store.client.close()
        del store
        gc.collect()
    wait_until(lambda: threads == {0: False}, "the thread has ended")
    for number in range(3):
        valkey.raw.delete(*valkey.raw.keys(f"{namespace}.{number}:*"))


def test_no_turn_starts_a_thread_after_renewals(threads):
    """A thread that renews is replaced by the one that waits next, even if no other lease is there."""
    renewals = Renewals(lease_ms=3_000)
    hanging = renewals.outcomes["a"] = threading.Event()
    a, b = leases("a", "b")
    with renewals.renewing(a):
        renewals.wait(a=1)
        started = len(threads)
        with renewals.renewing(b):
            assert len(threads) == started == 2
        hanging.set()
    renewals.renewer.close()
    wait_until(lambda: not any(threads.values()), "the threads have ended")


def test_a_signal_as_the_thread_is_started_leaves_one_that_renews(monkeypatch, threads):
    """Its handler raises between the start and the note of it."""
    started = runner.start_new_thread

    def interrupted(*args):
        started(*args)
        monkeypatch.setattr(runner, "start_new_thread", started)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "start_new_thread", interrupted)
    renewals = Renewals(lease_ms=1_500)
    a, b = leases("a", "b")
    with pytest.raises(KeyboardInterrupt), renewals.renewing(a):
        pytest.fail("must not run")
    with renewals.renewing(b):
        renewals.wait(b=3)
    assert "a" not in renewals.seen
    renewals.renewer.close()
    wait_until(lambda: not any(threads.values()), "the threads have ended")


def test_signals_as_the_thread_is_started():
    """threading.Thread.start turned 15 of 20,000 into a RuntimeError."""
    renewals = Renewals()
    [lease] = leases("a")
    with Alarm() as alarm:
        while alarm.fired < 3_000:
            renewer = LeaseRenewer(renewals, 60_000)
            with suppress(Interrupted):
                alarm.arm(within_s=60e-6)
                with renewer.renewing(renewals.ops, lease):
                    pass
                alarm.disarm()
            renewer.close()


ENDS = """
import time
from redis_sessions import Lease, StoreSettings
from redis_sessions.operations.conversation import Operations
from redis_sessions.resume.runner import LeaseRenewer

ops = Operations(StoreSettings(lease_ms=3))
renewers = [LeaseRenewer(lambda op: op.close() is None, 3) for _ in range(100)]
running = [renewer.renewing(ops, Lease("a", f"token {number}")) for number, renewer in enumerate(renewers)]
for each in running:
    each.__enter__()
time.sleep(0.05)
"""


def test_a_program_ends_in_order_while_leases_are_renewed():
    """A renewal starts a thread: with CPython 3.11.2 a third of such programs crashed, since the interpreter was gone."""
    ended = [subprocess.Popen([sys.executable, "-c", ENDS], stderr=subprocess.PIPE) for _ in range(8)]
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in ended] == [(b"", 0)] * 8
