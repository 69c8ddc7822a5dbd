"""Replies that get lost in a turn: it runs once, is saved, and nothing stays leased."""

from __future__ import annotations

import itertools

import pytest
import redis

from redis_sessions import Lease, LeaseHeld, Turn, Verdict
from redis_sessions.operations import scripts
from tests.resume.stand_in import AgentError, says


def test_a_whole_turn_through_losses_everywhere(store, client):
    for position in itertools.count():
        client.losses = [None] * position + ["after"]
        ran = []
        result = store.resume("a", lambda session_id, ran=ran: ran.append(session_id) or Turn("ID-1", None))
        assert len(ran) == 1
        assert result.saved
        all_went_well, client.losses = bool(client.losses), []
        lease = store.acquire("a")
        assert isinstance(lease, Lease)
        store.release(lease)
        if all_went_well:
            break
    assert position == 2, "claim and save were lost, each in its turn"
    counters = store.counters()
    assert (counters["fresh_starts_total"], counters["resumes_total"]) == (1, position), "each turn counted once"


class TestALeaseIsGivenBackWhenTheFreshRunFails:
    """A resume was refused, something about that was lost, and the server is there again: nothing stays leased."""

    @pytest.mark.parametrize("losses", [[None, None, "after"], [None, *["before"] * 5]], ids=["count", "rejection"])
    def test_despite_lost_replies(self, store, client, losses):
        store.set("a", "ID-1")
        store.release(store.acquire("a"))  # so that the scripts are loaded
        store.reject(store.acquire("b"))
        client.losses = list(losses)

        def run(session_id):
            if session_id:
                raise RuntimeError("No conversation found")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.resume("a", run)
        assert not client.losses
        assert isinstance(store.acquire("a"), Lease)


def test_an_interrupt_after_a_stores_first_save_counts_the_turn_once(store, client, monkeypatch, caplog):
    """It comes while the max age is compared: the turn has been saved and counted, and its lease released."""
    send, sent = client._client.execute_command, []

    def execute_command(*args, **options):
        sent.append(args)
        if b"max_age_ms" in args or "max_age_ms" in args:
            raise KeyboardInterrupt
        return send(*args, **options)

    monkeypatch.setattr(client._client, "execute_command", execute_command)
    with pytest.raises(KeyboardInterrupt):
        store.resume("a", lambda _: Turn("ID-1"))
    assert (store.get("a"), store.counters()["fresh_starts_total"]) == ("ID-1", 1)
    assert store.peek("a").record.turns == 1
    assert not [record for record in caplog.records if "taken over" in record.getMessage()]


class TestASuccessorComesBeforeTheResend:
    """The first sending was carried out, and its reply lost; then another worker takes the conversation."""

    @pytest.fixture
    def after_the_first(self, store, client, monkeypatch):
        """Let the reply to a script be lost once, and `successor` act before it is sent again."""

        def arrange(script, successor):
            store.resume("warm-up", lambda _: Turn("W"))
            send = client._client.execute_command

            def execute_command(*args, **options):
                reply = send(*args, **options)
                if args[1] in (script.sha, script.source):
                    monkeypatch.undo()
                    successor()
                    raise redis.TimeoutError
                return reply

            monkeypatch.setattr(client._client, "execute_command", execute_command)

        return arrange

    def test_a_turn_without_an_id_is_counted_once(self, store, after_the_first, caplog):
        after_the_first(scripts.RELEASE, lambda: store.acquire("a"))
        store.resume("a", lambda _: Turn(None))
        assert store.counters()["fresh_starts_total"] == 2
        assert "taken over" not in caplog.text

    def test_a_turn_that_was_saved_is_counted_once(self, store, after_the_first):
        after_the_first(scripts.SAVE, lambda: store.save(store.acquire("a"), "ID-2"))
        assert not store.resume("a", lambda _: Turn("ID-1")).saved
        assert (store.get("a"), store.counters()["fresh_starts_total"]) == ("ID-2", 2)

    def test_a_failure_is_counted_once(self, store, after_the_first, caplog):
        def run(session_id):
            raise AgentError

        store.set("a", "ID-1")
        after_the_first(scripts.FAIL, lambda: store.acquire("a"))
        with pytest.raises(AgentError):
            store.resume("a", run, judge=says(Verdict.other))
        assert store.peek("a").record.failures == 1
        assert "taken over" not in caplog.text

    def test_a_refusal_is_counted_once(self, store, after_the_first):
        def run(session_id):
            if session_id == "ID-1":
                raise AgentError
            pytest.fail("another worker has the conversation")

        def take_over():
            store.break_lease("a")
            store.acquire("a")

        store.set("a", "ID-1")
        after_the_first(scripts.REJECT, take_over)
        with pytest.raises(LeaseHeld):
            store.resume("a", run, judge=says(Verdict.gone))
        assert store.resume_failures_total() == 1
