"""Turns that fail or are cut short: what is kept of them, and when a session is given up; on every server."""

from __future__ import annotations

import logging
import uuid

import pytest

from redis_sessions import Judgement, SessionStoreError, StoreSettings, Turn, Verdict
from redis_sessions.keys import GAVE_UP, Keys
from redis_sessions.testing import fake_store
from tests.over import over
from tests.resume.stand_in import KEY, Agent, AgentError, says
from tests.stores import Blocking

R, E = "11111111-2222-4333-8444-555555555555", "99999999-2222-4333-8444-555555555555"


def answered(verdict, session_id, **more):
    return lambda _: Judgement(verdict, session_id, turn_began=True, **more)


def undecided(store, times):
    for _ in range(times):
        with pytest.raises(AgentError):
            store.resume(KEY, Agent(AgentError()), judge=says(Verdict.other))


class TestAModelThatHasAnswered:
    @pytest.mark.parametrize("verdict", [Verdict.other, Verdict.unavailable, Verdict.busy])
    def test_its_session_is_saved_though_the_turn_failed(self, store, counters, free, record, verdict):
        with pytest.raises(AgentError):
            store.resume(KEY, Agent(AgentError()), judge=answered(verdict, "E"))
        assert store.get(KEY) == "E"
        assert counters() == (0, 0, 1)
        assert record() == {"session_id": "E", "turns": 1, "complete": False}
        assert free()

    def test_the_next_turn_resumes_it_and_completes_it(self, store, counters, record):
        with pytest.raises(AgentError):
            store.resume(KEY, Agent(AgentError()), judge=answered(Verdict.other, "E", cut_short=True))
        assert store.resume(KEY, Agent("E")).how == "resumed"
        assert counters() == (0, 1, 1)
        assert record() == {"session_id": "E", "turns": 2}

    def test_a_resumed_one_gets_a_new_ttl_and_counts_its_failure(self, store, raw, namespace, counters, record):
        store.set(KEY, "R")
        raw.pexpire(Keys(namespace).session_id(KEY), 60_000)
        with pytest.raises(AgentError):
            store.resume(KEY, Agent(AgentError()), judge=answered(Verdict.other, "R"))
        assert raw.pttl(Keys(namespace).session_id(KEY)) > 60_000
        assert counters() == (0, 1, 0)
        assert record() == {"session_id": "R", "turns": 1, "complete": False, "failures": 1}

    def test_an_unusable_one_is_dropped_and_nothing_runs_again(self, store, counters, free):
        store.set(KEY, "R")
        agent = Agent(AgentError(), "E")
        with pytest.raises(AgentError):
            store.resume(KEY, agent, judge=answered(Verdict.unusable, "R"))
        assert (agent.asked, store.get(KEY), counters()) == (["R"], None, (1, 0, 0))
        assert free()

    def test_a_fresh_one_that_became_unusable_leaves_nothing(self, store, counters):
        def run(_):
            assert store.save_early(KEY, "E")
            raise AgentError

        with pytest.raises(AgentError):
            store.resume(KEY, run, judge=answered(Verdict.unusable, "E"))
        assert store.get(KEY) is None
        assert counters() == (0, 0, 0)

    def test_a_run_that_succeeded_though_it_raised_is_a_turn(self, store, counters, record):
        with pytest.raises(AgentError):
            store.resume(KEY, Agent(AgentError()), judge=answered(Verdict.ok, "E"))
        assert (store.get(KEY), counters(), record()) == ("E", (0, 0, 1), {"session_id": "E", "turns": 1})

    def test_an_id_that_can_be_none_is_not_saved(self, store):
        with pytest.raises(AgentError):
            store.resume(KEY, Agent(AgentError()), judge=answered(Verdict.other, "--oops"))
        assert store.get(KEY) is None


class TestSavedEarly:
    def test_the_id_is_there_while_the_turn_runs_and_the_lease_goes_on(self, store, counters):
        seen = []

        def run(_):
            seen.append((store.save_early(KEY, "E"), store.get(KEY), store.save_early("another", "E"), counters()))
            return Turn("E")

        assert store.resume(KEY, run).saved
        assert seen == [(True, "E", False, (0, 0, 0))]
        assert counters() == (0, 0, 1)
        assert not store.save_early(KEY, "E"), "no turn runs"

    @pytest.mark.parametrize("error", [AgentError("killed"), KeyboardInterrupt()])
    def test_it_stays_whatever_is_raised(self, store, counters, free, record, error):
        if isinstance(error, KeyboardInterrupt) and isinstance(store, Blocking):
            pytest.skip("a KeyboardInterrupt in a thread of an event loop ends that thread, not the turn")

        def run(_):
            store.save_early(KEY, "E")
            raise error

        with pytest.raises(type(error)):
            store.resume(KEY, run)
        assert (store.get(KEY), counters()) == ("E", (0, 0, 1))
        assert record() == {"session_id": "E", "turns": 1, "complete": False}
        assert free()

    def test_it_is_not_saved_over_a_successor(self, store, raw, namespace):
        def run(_):
            raw.set(Keys(namespace).lease(KEY), "another:1:x", px=60_000 + 30 * 86_400_000)
            assert not store.save_early(KEY, "E")
            raw.delete(Keys(namespace).lease(KEY))
            return Turn("E")

        assert not store.resume(KEY, run).saved
        assert store.get(KEY) is None

    def test_of_a_run_that_was_taken_over_on_the_same_store_nothing_is_saved(self, store, caplog):
        """Nor does it become a session of the turn that took over."""
        store.set(KEY, "R")
        saved = []

        def successor(session_id):
            saved.append((session_id, store.save_early(KEY, "E")))
            raise AgentError

        def run(_):
            store.break_lease(KEY)
            with pytest.raises(AgentError):
                store.resume(KEY, successor, judge=says(Verdict.unavailable))
            return Turn("E")

        assert not store.resume(KEY, run).saved
        assert (saved, store.get(KEY)) == ([("R", False)], "R")
        assert "runs 2 times on this store" in caplog.text


class TestGivingUp:
    def test_after_three_undecided_failures_the_next_turn_runs_fresh(self, store, raw, namespace, counters, record):
        store.set(KEY, "R")
        undecided(store, 3)
        assert record() == {"session_id": "R", "failures": 3}
        assert store.get(KEY) == "R"
        agent = Agent("E")
        result = store.resume(KEY, agent)
        assert agent.asked == [None]
        assert (result.how, result.previous, result.saved, result.session_changed) == ("gave_up", "R", True, False)
        assert "failed 3 times in a row" in result.reason
        assert (store.get(KEY), counters()) == ("E", (0, 0, 1))
        assert int(raw.get(Keys(namespace).counter(GAVE_UP))) == 1
        assert record() == {"session_id": "E", "turns": 1}

    def test_the_old_id_stands_until_a_fresh_turn_is_saved(self, store, counters):
        store.set(KEY, "R")
        undecided(store, 3)
        agent = Agent(AgentError(), AgentError(), None, "E")
        for _ in range(2):
            with pytest.raises(AgentError):
                store.resume(KEY, agent, judge=says(Verdict.other))
        assert store.resume(KEY, agent).how == "gave_up"
        assert store.get(KEY) == "R"
        assert store.resume(KEY, agent).how == "gave_up"
        assert (agent.asked, store.get(KEY)) == ([None] * 4, "E")

    @pytest.mark.parametrize(
        "judge",
        [says(Verdict.unavailable), lambda _: Judgement(Verdict.other, cut_short=True)],
        ids=["unavailable", "cut short"],
    )
    def test_what_says_nothing_of_the_session_does_not_count(self, store, record, free, judge):
        store.set(KEY, "R")
        for _ in range(4):
            with pytest.raises(AgentError):
                store.resume(KEY, Agent(AgentError()), judge=judge)
        assert (record(), store.get(KEY)) == ({}, "R")
        assert free()

    def test_a_turn_that_succeeds_begins_the_count_again(self, store, record):
        store.set(KEY, "R")
        undecided(store, 2)
        store.resume(KEY, Agent("R"))
        assert record() == {"session_id": "R", "turns": 1}
        undecided(store, 2)
        assert store.resume(KEY, Agent("R")).how == "resumed"

    def test_failures_are_those_of_one_session(self, store, raw, namespace):
        store.set(KEY, "R")
        undecided(store, 3)
        raw.set(Keys(namespace).session_id(KEY), "S", px=60_000)
        agent = Agent("S")
        assert store.resume(KEY, agent).how == "resumed"
        assert agent.asked == ["S"]

    def test_the_record_expires_with_the_id_and_the_id_keeps_its_ttl(self, store, raw, namespace):
        keys = Keys(namespace)
        store.set(KEY, "R")
        raw.pexpire(keys.session_id(KEY), 60_000)
        undecided(store, 1)
        assert 0 < raw.pttl(keys.record(KEY)) <= 60_000
        assert 0 < raw.pttl(keys.session_id(KEY)) <= 60_000

    @over("settings", [{"give_up_after": 0}, {"records": False}])
    def test_never_if_not_wanted(self, settings):
        store = fake_store(StoreSettings(**settings))
        store.set(KEY, "R")
        undecided(store, 9)
        assert store.resume(KEY, Agent("R")).how == "resumed"

    def test_a_record_of_another_type_is_replaced(self, store, raw, namespace, record):
        raw.set(Keys(namespace).record(KEY), "x", px=60_000)
        store.set(KEY, "R")
        undecided(store, 1)
        assert record() == {"session_id": "R", "failures": 1}

    @pytest.mark.everywhere
    @over("figure", ["many", "", "1.5", "-5", "inf", "1e300", "9" * 30, "00"])
    def test_a_record_whose_figures_are_none_blocks_nobody_and_is_counted_from_the_start(
        self, store, raw, namespace, free, caplog, figure
    ):
        keys = Keys(namespace)
        store.resume(KEY, Agent("R"))
        raw.hset(keys.record(KEY), mapping={"f": figure, "u": figure})
        raw.pexpire(keys.record(KEY), 60_000)  # less than the ID, as if that had been saved later
        for _ in range(3):
            undecided(store, 1)
            assert free()
        assert store.resume(KEY, Agent("E")).how == "gave_up"
        assert not [each for each in caplog.messages if "was not released" in each]

    def test_deleting_the_id_deletes_its_record(self, store, raw, namespace):
        store.set(KEY, "R")
        undecided(store, 1)
        assert store.delete(KEY)
        assert not raw.exists(Keys(namespace).record(KEY))


class TestAnotherSessionThanTheOneAskedFor:
    def test_of_a_runtime_that_keeps_its_id_the_old_one_was_gone(self, store, counters):
        store.set(KEY, "R")
        result = store.resume(KEY, lambda _: Turn("E", previous_gone=True))
        assert (result.how, result.previous, result.session_id, result.session_changed) == ("restarted", "R", "E", False)
        assert "was gone" in result.reason
        assert (store.get(KEY), counters()) == ("E", (1, 0, 1))

    def test_the_agent_says_whether_it_keeps_its_ids(self, store, counters):
        store.set(KEY, R)
        assert store.resume(KEY, Agent(E), agent="codex").how == "restarted"
        assert store.resume(KEY, lambda _: Turn(R, previous_gone=False), agent="codex").how == "resumed"
        assert (store.get(KEY), counters()) == (R, (1, 1, 1))

    def test_of_one_that_changes_it_the_record_goes_on(self, store, record):
        store.resume(KEY, Agent("R"))
        store.resume(KEY, Agent("E"))
        assert record() == {"session_id": "E", "turns": 2}


class TestAgent:
    def test_it_gives_judge_and_accepted_ids(self, store, counters, record):
        class Failed(Exception):
            returncode, stdout, stderr = 1, "", f"No conversation found with session ID: {R}\n"

        store.set(KEY, R)
        result = store.resume(KEY, Agent(Failed(), E), agent="claude")
        assert (result.how, counters()) == ("restarted", (1, 0, 1))
        assert record() == {"session_id": E, "agent": "claude", "turns": 1}
        store.set(KEY, "not-a-uuid")
        assert "this agent can't resume" in store.resume(KEY, Agent(E), agent="claude").reason

    def test_without_one_the_second_failure_is_a_warning_with_the_remedy(self, caplog):
        store = fake_store()
        store.set(KEY, "R")
        for expected in (0, 1):
            with pytest.raises(AgentError):
                store.resume(KEY, Agent(AgentError("boom")))
            assert sum("pass agent=" in record.getMessage() for record in caplog.records) == expected
        assert caplog.records[-1].levelno == logging.WARNING


class TestTypes:
    @over("wrong", [uuid.uuid4(), b"key", 7, None])
    def test_what_is_not_a_str_is_refused_before_anything_runs(self, store, wrong):
        agent = Agent("E")
        calls = [
            lambda: store.get(wrong),
            lambda: store.set(wrong, "E"),
            lambda: store.set(KEY, wrong),
            lambda: store.acquire(wrong),
            lambda: store.resume(wrong, agent),
            lambda: store.save_early(KEY, wrong),
        ]
        if wrong is not None:
            calls += [lambda: store.delete(KEY, wrong), lambda: Turn(wrong)]
        for call in calls:
            with pytest.raises(TypeError, match="must be a str"):
                call()
        assert agent.asked == []

    def test_a_closed_store_refuses_to_work(self, make_store):
        store, agent = make_store(), Agent("E")
        other = store if isinstance(store, Blocking) else store.for_namespace("other")
        store.close()
        for closed in (store, other):
            with pytest.raises(SessionStoreError, match="closed"):
                closed.get(KEY)
            with pytest.raises(SessionStoreError, match="closed"):
                closed.resume(KEY, agent)
        assert agent.asked == []
