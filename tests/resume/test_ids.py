"""Which IDs are resumed and saved: one that can't be the agent's is neither, and is not a resume failure."""

from __future__ import annotations

import logging

import pytest

from redis_sessions import SessionStore, StoreSettings, Turn, Verdict
from redis_sessions.agents import get_agent
from redis_sessions.keys import Keys
from redis_sessions.server import EmbeddedServer
from tests.resume.stand_in import KEY, AgentError, says

R = "11111111-2222-4333-8444-555555555555"
E = "aaaaaaaa-2222-4333-8444-555555555555"
CAN_BE = get_agent("claude").can_be


def gives(session_id, asked):
    def run(given):
        asked.append(given)
        return Turn(session_id, "value")

    return run


class TestFound:
    @pytest.mark.parametrize("lease", [True, False])
    def test_an_invalid_id_is_nothing_to_resume_and_is_overwritten(self, store, counters, caplog, lease):
        store.set(KEY, "5f2c9a")
        asked = []
        result = store.resume(KEY, gives(E, asked), judge=says(Verdict.gone), accepts=CAN_BE, lease=lease)
        assert asked == [None]
        assert (result.how, result.previous, result.session_id, result.saved) == ("fresh", None, E, True)
        assert result.reason == "Redis held '5f2c9a', which this agent can't resume: started fresh"
        assert result.reason in caplog.text
        assert store.get(KEY) == E
        assert counters() == (0, 0, 1)

    def test_a_fresh_turn_that_fails_deletes_and_counts_nothing(self, store, counters):
        store.set(KEY, "5f2c9a")

        def run(session_id):
            raise AgentError

        with pytest.raises(AgentError):
            store.resume(KEY, run, judge=says(Verdict.gone), accepts=CAN_BE)
        assert store.get(KEY) == "5f2c9a"
        assert counters() == (0, 0, 0)
        assert store.resume(KEY, gives(E, []), accepts=CAN_BE).saved  # nothing is leased

    def test_what_is_accepted_is_resumed(self, store, counters):
        store.set(KEY, R)
        asked = []
        result = store.resume(KEY, gives(R, asked), accepts=CAN_BE)
        assert (asked, result.how, result.reason) == ([R], "resumed", None)
        assert counters() == (0, 1, 0)


class TestGiven:
    @pytest.mark.parametrize(
        ("given", "shown", "why"),
        [
            ("--x", "'--x'", "is not a valid session ID"),
            ("s-1", "'s-1'", "this agent can't resume"),
            ("two\nlines\x1b[2J", r"'two\nlines\x1b[2J'", "is not a valid session ID"),
            ("-" * 300, f"'{'-' * 60}'…", "is not a valid session ID"),
        ],
    )
    @pytest.mark.parametrize("previous", [None, R])
    def test_an_invalid_id_is_named_and_not_saved(self, store, raw, namespace, caplog, given, shown, why, previous):
        if previous:
            store.set(KEY, previous)
            raw.pexpire(Keys(namespace).session_id(KEY), 60_000)
        result = store.resume(KEY, gives(given, []), accepts=CAN_BE)
        assert (result.value, result.session_id, result.saved) == ("value", previous, previous is not None)
        assert not result.session_changed
        assert result.reason == f"the turn gave {shown} as its session, which {why}: not saved"
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert store.get(KEY) == previous
        # The session that was resumed has been used: it gets a new TTL, as after a turn that gave no ID.
        assert previous is None or raw.pttl(Keys(namespace).session_id(KEY)) > 60_000

    def test_by_default_any_valid_id_is_accepted(self, store):
        assert store.resume(KEY, gives("s-1", [])).saved
        assert store.resume(KEY, gives("--x", [])).session_id == "s-1"


@pytest.mark.parametrize(("held", "saved"), [("5f2c9a", True), (R, False)])
def test_after_an_outage_only_an_id_that_could_be_resumed_is_kept(held, saved):
    settings = StoreSettings(deadline_ms=1_500, socket_timeout_ms=300)
    with EmbeddedServer() as server, SessionStore.from_url(server.url, settings) as store:
        server.kill()

        def run(session_id):
            server.start()
            with SessionStore.from_url(server.url) as other:
                other.set(KEY, held)
            return Turn(E, None)

        result = store.resume(KEY, run, accepts=CAN_BE)
        assert result.saved is saved
        assert store.get(KEY) == (E if saved else held)
