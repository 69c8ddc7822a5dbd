"""The truth table of `resume`, row by row, on every server and in both flavors."""

from __future__ import annotations

import pytest

from redis_sessions import Held, InvalidKey, Lease, LeaseHeld, ResumeResult, SessionBusy, Turn, Verdict
from redis_sessions.keys import Keys
from tests.resume.stand_in import KEY, Agent, AgentError, says


def shorten(raw, namespace):
    raw.pexpire(Keys(namespace).session_id(KEY), 60_000)


def ttl_ms(raw, namespace):
    return raw.pttl(Keys(namespace).session_id(KEY))


class TestNothingToResume:
    @pytest.mark.everywhere
    def test_a_turn_with_an_id_is_saved(self, store, counters, free):
        agent = Agent("E")
        assert store.resume(KEY, agent) == ResumeResult(
            value="value 1", session_id="E", how="fresh", previous=None, saved=True, session_changed=False, reason=None
        )
        assert agent.asked == [None]
        assert store.get(KEY) == "E"
        assert counters() == (0, 0, 1)
        assert free()

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_a_turn_without_an_id_saves_nothing(self, store, counters, free, nothing):
        result = store.resume(KEY, Agent(nothing))
        assert (result.how, result.session_id, result.saved) == ("fresh", None, False)
        assert store.get(KEY) is None
        assert counters() == (0, 0, 1)
        assert free()

    def test_a_failure_saves_nothing_and_is_raised_unchanged(self, store, counters, free):
        failure = AgentError("No conversation found, says a model that was asked nothing")
        with pytest.raises(AgentError) as caught:
            store.resume(KEY, Agent(failure), judge=says(Verdict.gone))
        assert caught.value is failure
        assert store.get(KEY) is None
        assert counters() == (0, 0, 0)
        assert free()

    def test_a_turn_that_ran_is_not_lost_to_a_bad_id(self, store, free):
        result = store.resume(KEY, Agent("--oops"))
        assert (result.value, result.saved) == ("value 1", False)
        assert "--oops" in result.reason
        assert store.get(KEY) is None
        assert free()

    def test_an_invalid_value_is_nothing_to_resume(self, store, raw, namespace):
        raw.set(Keys(namespace).session_id(KEY), "two words", px=60_000)
        agent = Agent("E")
        result = store.resume(KEY, agent)
        assert agent.asked == [None]
        assert (result.how, result.saved) == ("fresh", True)
        assert "not a valid session ID" in result.reason
        assert store.get(KEY) == "E"


class TestResumed:
    @pytest.mark.everywhere
    @pytest.mark.parametrize("answer", ["R", None])
    def test_the_same_id_or_none_starts_a_new_ttl(self, store, raw, namespace, counters, free, answer):
        store.set(KEY, "R")
        shorten(raw, namespace)
        agent = Agent(answer)
        assert store.resume(KEY, agent) == ResumeResult(
            value="value 1", session_id="R", how="resumed", previous="R", saved=True, session_changed=False, reason=None
        )
        assert agent.asked == ["R"]
        assert ttl_ms(raw, namespace) > 60_000
        assert counters() == (0, 1, 0)
        assert free()

    def test_another_id_is_saved_and_reported(self, store, counters, free):
        store.set(KEY, "R")
        result = store.resume(KEY, Agent("E"))
        assert (result.how, result.session_id, result.previous) == ("resumed", "E", "R")
        assert result.session_changed
        assert store.get(KEY) == "E"
        assert counters() == (0, 1, 0)
        assert free()

    def test_busy_keeps_the_id_and_its_ttl(self, store, raw, namespace, counters, free):
        store.set(KEY, "R")
        shorten(raw, namespace)
        with pytest.raises(SessionBusy) as caught:
            store.resume(KEY, Agent(AgentError()), judge=says(Verdict.busy))
        assert (caught.value.key, caught.value.session_id) == (KEY, "R")
        assert isinstance(caught.value.__cause__, AgentError)
        assert store.get(KEY) == "R"
        assert 0 < ttl_ms(raw, namespace) <= 60_000
        assert counters() == (0, 0, 0)
        assert free()

    @pytest.mark.parametrize("verdict", [Verdict.other, Verdict.ok])
    def test_any_other_failure_keeps_the_id_and_its_ttl(self, store, raw, namespace, counters, free, verdict):
        store.set(KEY, "R")
        shorten(raw, namespace)
        failure = AgentError("rate limited")
        with pytest.raises(AgentError) as caught:
            store.resume(KEY, Agent(failure), judge=says(verdict))
        assert caught.value is failure
        assert store.get(KEY) == "R"
        assert 0 < ttl_ms(raw, namespace) <= 60_000
        assert counters() == (0, 0, 0)
        assert free()


class TestRefused:
    @pytest.mark.everywhere
    @pytest.mark.parametrize("verdict", [Verdict.gone, Verdict.invalid_id, Verdict.unusable])
    def test_it_is_deleted_counted_and_run_once_more_fresh(self, store, counters, free, verdict):
        store.set(KEY, "R")
        agent = Agent(AgentError(), "E")
        result = store.resume(KEY, agent, judge=says(verdict))
        assert agent.asked == ["R", None]
        assert (result.how, result.session_id, result.previous, result.saved) == ("restarted", "E", "R", True)
        assert not result.session_changed
        assert verdict.value in result.reason
        assert store.get(KEY) == "E"
        assert counters() == (1, 0, 1)
        assert free()

    def test_it_is_deleted_and_counted_before_the_fresh_run(self, store, counters):
        store.set(KEY, "R")
        seen = []

        def run(session_id):
            if session_id:
                raise AgentError
            seen.append((store.get(KEY), counters(), type(store.acquire(KEY))))
            return Turn("E", None)

        store.resume(KEY, run, judge=says(Verdict.gone))
        assert seen == [(None, (1, 0, 0), Held)]

    def test_once_a_turn_had_begun_nothing_is_run_again(self, store, counters, free):
        store.set(KEY, "R")
        failure = AgentError()
        agent = Agent(failure)
        with pytest.raises(AgentError) as caught:
            store.resume(KEY, agent, judge=says(Verdict.unusable, turn_began=True))
        assert caught.value is failure
        assert agent.asked == ["R"]
        assert store.get(KEY) is None
        assert counters() == (1, 0, 0)
        assert free()

    def test_a_fresh_run_that_fails_too_is_not_repeated(self, store, counters, free):
        store.set(KEY, "R")
        second = AgentError("second")
        agent = Agent(AgentError("first"), second)
        with pytest.raises(AgentError) as caught:
            store.resume(KEY, agent, judge=says(Verdict.invalid_id))
        assert caught.value is second
        assert agent.asked == ["R", None]
        assert store.get(KEY) is None
        assert counters() == (1, 0, 0)
        assert free()

    def test_a_lease_taken_meanwhile_prevents_the_fresh_run(self, store, raw, namespace, counters, lapse):
        store.set(KEY, "R")

        def run(session_id):
            lapse(KEY)
            assert isinstance(store.acquire(KEY), Lease)
            raise AgentError

        with pytest.raises(LeaseHeld) as caught:
            store.resume(KEY, run, judge=says(Verdict.gone))
        assert caught.value.key == KEY
        assert store.get(KEY) == "R"  # only the successor may judge it
        assert counters() == (1, 0, 0)
        assert isinstance(store.acquire(KEY), Held)

    def test_what_a_plain_set_saved_meanwhile_stays_until_the_fresh_turn_ends(self, store):
        store.set(KEY, "R")

        def run(session_id):
            if session_id:
                store.set(KEY, "S")
                raise AgentError
            assert store.get(KEY) == "S"
            return Turn("E", None)

        assert store.resume(KEY, run, judge=says(Verdict.gone)).how == "restarted"
        assert store.get(KEY) == "E"


def test_what_run_returns_must_be_a_turn(store, free):
    with pytest.raises(TypeError, match="Turn"):
        store.resume(KEY, lambda _: "E")
    assert free()


def test_a_judge_that_raises_releases_the_lease(store, free):
    store.set(KEY, "R")
    with pytest.raises(ZeroDivisionError):
        store.resume(KEY, Agent(AgentError()), judge=lambda _: 1 / 0)
    assert store.get(KEY) == "R"
    assert free()


def test_a_bad_key_runs_nothing(store):
    with pytest.raises(InvalidKey):
        store.resume("", lambda _: pytest.fail("must not run"))
