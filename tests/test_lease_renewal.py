"""Leases are renewed while their turns run; a renewal that hangs delays no other lease."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack

from redis_sessions import Lease, StoreSettings
from redis_sessions.operations.conversation import Operations
from redis_sessions.resume.runner import LeaseRenewer


class Renewals:
    """Answers renewals without a server. By key, `outcomes`: a reply, an error or an Event to wait for; `seen`: how many."""

    def __init__(self, lease_ms=60):
        self.outcomes = {}
        self.seen = {}
        self.changed = threading.Condition()
        self.renewer = LeaseRenewer(Operations(StoreSettings(lease_ms=lease_ms)), self)

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
            stack.enter_context(renewals.renewer.renewing(lease))
        renewals.wait(a=3, b=3, c=3)
    before = dict(renewals.seen)
    with renewals.renewer.renewing(*leases("d")):
        renewals.wait(d=3)
    assert {key: renewals.seen[key] for key in "abc"} == before


def test_a_renewal_that_hangs_delays_no_other_lease():
    renewals = Renewals()
    hanging = renewals.outcomes["a"] = threading.Event()
    a, b, late = leases("a", "b", "late")
    with renewals.renewer.renewing(a), renewals.renewer.renewing(b):
        renewals.wait(a=1, b=3)
        with renewals.renewer.renewing(late):
            renewals.wait(late=2)
        assert renewals.seen["a"] == 1
        hanging.set()
        renewals.wait(a=3)


def test_a_renewal_that_hangs_delays_no_later_lease():
    renewals = Renewals()
    hanging = renewals.outcomes["a"] = threading.Event()
    a, b = leases("a", "b")
    with renewals.renewer.renewing(a):
        renewals.wait(a=1)
        with renewals.renewer.renewing(b):
            renewals.wait(b=2)
        hanging.set()


def test_if_no_thread_can_be_started_the_other_leases_wait_for_a_renewal(monkeypatch):
    def fail():
        raise RuntimeError("can't start new thread")

    renewals = Renewals()
    a, b = leases("a", "b")
    with renewals.renewer.renewing(a), renewals.renewer.renewing(b):
        monkeypatch.setattr(renewals.renewer, "_start", fail)
        renewals.wait(a=3, b=3)


def test_a_failure_is_tried_again_and_a_loss_is_not(caplog):
    renewals = Renewals()
    renewals.outcomes = {"failing": OSError("away"), "lost": 0}
    failing, lost = leases("failing", "lost")
    with renewals.renewer.renewing(failing), renewals.renewer.renewing(lost):
        renewals.wait(failing=3, lost=1)
    assert renewals.seen["lost"] == 1
    assert "lease of 'failing' was not renewed" in caplog.text
    assert "conversation 'lost' was taken over" in caplog.text


def test_a_forked_child_renews_nothing_of_its_parents_and_keeps_its_own():
    renewals = Renewals()
    mine, its = leases("mine", "its")
    with renewals.renewer.renewing(mine):
        with renewals.renewer._lock:  # as another thread may hold it
            child = os.fork()
        if child == 0:
            renewals.seen.clear()
            with renewals.renewer.renewing(its):
                renewals.wait(its=3)
            os._exit(int("mine" in renewals.seen))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
