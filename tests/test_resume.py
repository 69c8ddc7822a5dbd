"""The truth table of `resume`, row by row, on every server and in both flavours."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from redis_sessions import (
    Held,
    InvalidKey,
    Judgement,
    Lease,
    LeaseHeld,
    ResumeResult,
    SessionBusy,
    Turn,
    Verdict,
)
from redis_sessions.keys import COUNTERS, Keys
from tests.servers import wait_until

KEY = "acme/shop#42:reviewer"


class AgentError(Exception):
    """What a stand-in agent raises."""


class Agent:
    """A stand-in that gives one answer a run: an ID (None for none), or an exception to raise."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, session_id):
        self.asked.append(session_id)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return Turn(answer, f"value {len(self.asked)}")


def says(verdict, *, turn_began=False):
    return lambda error: Judgement(verdict, turn_began=turn_began)


@pytest.fixture
def counters(raw, namespace):
    """The three counters: failures, resumes, fresh starts."""
    return lambda: tuple(int(raw.get(Keys(namespace).counter(name)) or 0) for name in COUNTERS)


@pytest.fixture
def free(store):
    """Whether nobody holds the conversation."""

    def check():
        claim = store.acquire(KEY)
        if isinstance(claim, Lease):
            store.release(claim)
        return isinstance(claim, Lease)

    return check


def shorten(raw, namespace):
    raw.pexpire(Keys(namespace).session_id(KEY), 60_000)


def ttl_ms(raw, namespace):
    return raw.pttl(Keys(namespace).session_id(KEY))


class TestNothingToResume:
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

    def test_a_failure_saves_nothing_and_is_raised_as_it_is(self, store, counters, free):
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

    def test_a_value_that_is_no_session_id_is_nothing_to_resume(self, store, raw, namespace):
        raw.set(Keys(namespace).session_id(KEY), "two words", px=60_000)
        agent = Agent("E")
        result = store.resume(KEY, agent)
        assert agent.asked == [None]
        assert (result.how, result.saved) == ("fresh", True)
        assert "no valid session ID" in result.reason
        assert store.get(KEY) == "E"


class TestResumed:
    @pytest.mark.parametrize("answer", ["R", None])
    def test_the_same_id_or_none_starts_the_whole_ttl_anew(self, store, raw, namespace, counters, free, answer):
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

    def test_another_id_is_saved_and_said(self, store, counters, free):
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


@pytest.mark.parametrize("verdict", [Verdict.gone, Verdict.invalid_id, Verdict.unusable])
class TestRefused:
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

    def test_it_is_deleted_and_counted_before_the_fresh_run(self, store, counters, verdict):
        store.set(KEY, "R")
        seen = []

        def run(session_id):
            if session_id:
                raise AgentError
            seen.append((store.get(KEY), counters(), type(store.acquire(KEY))))
            return Turn("E", None)

        store.resume(KEY, run, judge=says(verdict))
        assert seen == [(None, (1, 0, 0), Held)]

    def test_once_a_turn_had_begun_nothing_is_run_again(self, store, counters, free, verdict):
        store.set(KEY, "R")
        failure = AgentError()
        agent = Agent(failure)
        with pytest.raises(AgentError) as caught:
            store.resume(KEY, agent, judge=says(verdict, turn_began=True))
        assert caught.value is failure
        assert agent.asked == ["R"]
        assert store.get(KEY) is None
        assert counters() == (1, 0, 0)
        assert free()

    def test_a_fresh_run_that_fails_too_is_not_repeated(self, store, counters, free, verdict):
        store.set(KEY, "R")
        second = AgentError("second")
        agent = Agent(AgentError("first"), second)
        with pytest.raises(AgentError) as caught:
            store.resume(KEY, agent, judge=says(verdict))
        assert caught.value is second
        assert agent.asked == ["R", None]
        assert store.get(KEY) is None
        assert counters() == (1, 0, 0)
        assert free()

    def test_a_lease_taken_meanwhile_forbids_the_fresh_run(self, store, raw, namespace, counters, lapse, verdict):
        store.set(KEY, "R")

        def run(session_id):
            lapse(KEY)
            assert isinstance(store.acquire(KEY), Lease)
            raise AgentError

        with pytest.raises(LeaseHeld) as caught:
            store.resume(KEY, run, judge=says(verdict))
        assert caught.value.key == KEY
        assert store.get(KEY) == "R"  # it is the successor's to judge
        assert counters() == (1, 0, 0)
        assert isinstance(store.acquire(KEY), Held)

    def test_what_a_plain_set_saved_meanwhile_stays_until_the_fresh_turn_ends(self, store, verdict):
        store.set(KEY, "R")

        def run(session_id):
            if session_id:
                store.set(KEY, "S")
                raise AgentError
            assert store.get(KEY) == "S"
            return Turn("E", None)

        assert store.resume(KEY, run, judge=says(verdict)).how == "restarted"
        assert store.get(KEY) == "E"


class TestDefaultJudge:
    TEXT = "No conversation found with session ID: R"

    def test_it_knows_the_phrase_from_the_refusal_to_the_counter(self, store, counters):
        store.set(KEY, "R")

        def run(session_id):
            code = f"import sys; sys.exit({self.TEXT!r} if {session_id!r} else 0)"
            subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, stderr=subprocess.PIPE)
            return Turn("E", "ran")

        result = store.resume(KEY, run)
        assert (result.how, result.value, store.get(KEY)) == ("restarted", "ran", "E")
        assert store.resume_failures_total() == 1
        assert counters() == (1, 0, 1)

    @pytest.mark.parametrize(
        "error",
        [
            AgentError("Not logged in"),
            subprocess.CalledProcessError(1, ["claude", "-p", TEXT], stderr="overloaded"),
            subprocess.CalledProcessError(1, ["claude"], output=TEXT, stderr=b""),
            subprocess.TimeoutExpired(["claude", "-p", TEXT], 1),
        ],
    )
    def test_it_knows_nothing_else_and_reads_neither_command_nor_output(self, store, counters, error):
        store.set(KEY, "R")
        with pytest.raises(type(error)):
            store.resume(KEY, Agent(error))
        assert store.get(KEY) == "R"
        assert counters() == (0, 0, 0)


class TestLeaseOfATurn:
    def test_no_other_worker_runs_meanwhile_and_the_holder_is_named(self, store, free):
        def run(session_id):
            with pytest.raises(LeaseHeld) as caught:
                store.resume(KEY, lambda _: pytest.fail("ran twice"))
            assert caught.value.holder
            assert 0 < caught.value.remaining_ms <= store.settings.lease_ms
            return Turn("E", None)

        assert store.resume(KEY, run).saved
        assert free()

    def test_whoever_waits_gets_its_turn(self, store):
        running, waiting = threading.Event(), []

        def first(session_id):
            running.set()
            thread.start()
            return Turn("E", None)

        def wait():
            waiting.append(store.resume(KEY, Agent("E"), wait_ms=30_000))

        thread = threading.Thread(target=wait)
        store.resume(KEY, first)
        thread.join()
        [second] = waiting
        assert (second.how, second.previous) == ("resumed", "E")

    def test_waiting_ends(self, store):
        claim = store.acquire(KEY)
        with pytest.raises(LeaseHeld) as caught:
            store.resume(KEY, lambda _: pytest.fail("must not run"), wait_ms=60)
        assert caught.value.holder == claim.token

    def test_it_is_renewed_while_the_turn_lasts(self, make_store, raw, namespace):
        store = make_store(lease_ms=90)
        lease_key = Keys(namespace).lease(KEY)

        def run(session_id):
            # Once written longer, only a renewal can bring the time left down to the lease's own again.
            raw.pexpire(lease_key, 40 * 86_400_000)
            wait_until(lambda: raw.pttl(lease_key) < 31 * 86_400_000, "a renewal")
            return Turn("E", None)

        assert store.resume(KEY, run).saved

    def test_taken_over_it_overwrites_nothing_and_says_so(self, store, counters, lapse):
        def run(session_id):
            lapse(KEY)
            store.save(store.acquire(KEY), "S")
            return Turn("E", "kept")

        result = store.resume(KEY, run)
        assert (result.value, result.session_id, result.saved) == ("kept", "E", False)
        assert "taken over" in result.reason or "took" in result.reason
        assert store.get(KEY) == "S"
        assert counters() == (0, 0, 1)

    @pytest.mark.parametrize("answer", [None, AgentError("boom")])
    def test_taken_over_with_nothing_to_save_the_log_says_so(self, store, lapse, answer, caplog):
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

    def test_lapsed_and_untaken_it_still_saves(self, store, lapse):
        def run(session_id):
            lapse(KEY)
            return Turn("E", None)

        assert store.resume(KEY, run).saved
        assert store.get(KEY) == "E"

    def test_two_threads_of_one_process_never_share_one(self, store):
        inside, most, ran = [], [], []
        lock = threading.Lock()

        def run(session_id):
            with lock:
                inside.append(1)
                most.append(len(inside))
            with lock:
                inside.pop()
            ran.append(session_id)
            return Turn(f"E{len(ran)}", None)

        threads = [threading.Thread(target=lambda: store.resume(KEY, run, wait_ms=60_000)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 1
        assert ran == [None, "E1", "E2", "E3", "E4", "E5"]

    def test_without_a_lease_the_table_is_the_same(self, store, counters):
        claim = store.acquire(KEY)
        assert store.resume(KEY, Agent("E"), lease=False).saved
        assert store.resume(KEY, Agent("E"), lease=False).how == "resumed"
        restarted = store.resume(KEY, Agent(AgentError(), "F"), lease=False, judge=says(Verdict.gone))
        assert (restarted.how, store.get(KEY)) == ("restarted", "F")
        assert counters() == (1, 1, 2)
        assert store.release(claim)

    def test_without_a_lease_a_bad_value_is_nothing_to_resume(self, store, raw, namespace):
        raw.lpush(Keys(namespace).session_id(KEY), "x")
        raw.pexpire(Keys(namespace).session_id(KEY), 60_000)
        result = store.resume(KEY, Agent("E"), lease=False)
        assert (result.how, result.saved) == ("fresh", True)
        assert result.reason


def test_what_run_returns_must_be_a_turn(store, free):
    with pytest.raises(TypeError, match="Turn"):
        store.resume(KEY, lambda _: "E")
    assert free()


def test_a_judge_that_fails_gives_the_lease_back(store, free):
    store.set(KEY, "R")
    with pytest.raises(ZeroDivisionError):
        store.resume(KEY, Agent(AgentError()), judge=lambda _: 1 / 0)
    assert store.get(KEY) == "R"
    assert free()


def test_a_bad_key_runs_nothing(store):
    with pytest.raises(InvalidKey):
        store.resume("", lambda _: pytest.fail("must not run"))
