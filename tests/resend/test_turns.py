"""Replies that get lost in a turn: it runs once, is saved, and nothing stays leased."""

from __future__ import annotations

import itertools

import pytest

from redis_sessions import Lease, Turn


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
