"""Sessions that are not resumed although they live: rotated, made elsewhere, or another agent's; on every server."""

from __future__ import annotations

import pytest
import redis

from redis_sessions import (
    InvalidSettings,
    Judgement,
    LeaseHeld,
    Place,
    SessionElsewhere,
    SessionStore,
    StoreSettings,
    Turn,
    Verdict,
)
from redis_sessions.keys import RECORD_FIELDS, ROTATIONS, Keys
from redis_sessions.server import EmbeddedServer
from redis_sessions.testing import fake_store
from tests.resume.stand_in import KEY, Agent, AgentError, says

HERE = Place("build-7", "/home/worker/.claude", "/home/worker/src/shop")
R, E = "11111111-2222-4333-8444-555555555555", "99999999-2222-4333-8444-555555555555"


def elsewhere(**other):
    return Place(**{name: getattr(HERE, name) for name in Place.__slots__} | other)


@pytest.fixture
def rotations(raw, namespace):
    return lambda: int(raw.get(Keys(namespace).counter(ROTATIONS)) or 0)


class TestRotation:
    @pytest.mark.parametrize(
        ("limit", "before", "reason"),
        [
            ({"max_turns": 2}, {"t": 2}, "has 2 turns, and the limit is 2"),
            ({"max_context_tokens": 900}, {"c": 950}, "has 950 tokens of context, and the limit is 900"),
            ({"max_lifetime_ms": 60_000}, {"s": 5}, "ago, and the limit is 1m"),
        ],
    )
    def test_past_a_limit_the_turn_runs_fresh(
        self, make_store, raw, namespace, counters, record, rotations, limit, before, reason
    ):
        store, unlimited = make_store(**limit), make_store()
        store.resume(KEY, Agent("R"))
        assert store.resume(KEY, Agent("R")).how == "resumed"
        raw.hset(Keys(namespace).record(KEY), mapping=before)
        failing, agent = Agent(AgentError(), None), Agent("E")
        with pytest.raises(AgentError):
            store.resume(KEY, failing, judge=says(Verdict.other))
        assert (store.resume(KEY, failing).how, failing.asked) == ("rotated", [None, None])
        assert (store.get(KEY), record()["turns"], rotations()) == ("R", 2, 1), "it stands until a fresh turn is saved"
        result = store.resume(KEY, agent)
        assert (result.how, result.previous, result.session_id, result.session_changed) == ("rotated", "R", "E", False)
        assert reason in result.reason
        assert (agent.asked, store.get(KEY), record(), rotations()) == ([None], "E", {"session_id": "E", "turns": 1}, 2)
        assert counters() == (0, 1, 3)
        assert store.resume(KEY, Agent("E")).how == "resumed"
        raw.hset(Keys(namespace).record(KEY), mapping=before)
        assert unlimited.resume(KEY, Agent("E")).how == "resumed"

    @pytest.mark.parametrize("figure", ["many", "1.5", "inf", "-5", "9" * 30])
    def test_figures_that_are_none_are_counted_from_the_start(self, make_store, raw, namespace, figure):
        store = make_store(max_turns=2)
        store.resume(KEY, Agent("R"))
        raw.hset(Keys(namespace).record(KEY), mapping={"t": figure, "s": figure})
        assert store.resume(KEY, Agent("R")).how == "resumed"
        assert (store.peek(KEY).record.turns, store.peek(KEY).record.started_ms is None) == (1, False)
        assert [store.resume(KEY, Agent("R")).how for _ in range(2)] == ["resumed", "rotated"]

    def test_what_is_known_of_another_session_rotates_nothing(self, make_store, raw, namespace):
        store = make_store(max_turns=1, max_lifetime_ms=1, max_context_tokens=1)
        store.resume(KEY, lambda _: Turn("R", context_tokens=5))
        raw.set(Keys(namespace).session_id(KEY), "S", px=60_000)
        assert store.peek(KEY).record is None
        agent = Agent("S")
        assert (store.resume(KEY, agent, place=HERE, on_elsewhere="raise").how, agent.asked) == ("resumed", ["S"])
        assert store.peek(KEY).record.turns == 1

    def test_run_can_learn_how_it_was_started(self, make_store):
        store = make_store(max_turns=2)
        answers, seen = iter(("R", "R", "E", AgentError(), "F")), []

        def run(session_id):
            seen.append((session_id, *store.running_turn(KEY)))
            answer = next(answers)
            if isinstance(answer, AgentError):
                raise answer
            return Turn(answer)

        ways = [store.resume(KEY, run, judge=says(Verdict.gone)).how for _ in range(4)]
        assert ways == ["fresh", "resumed", "rotated", "restarted"]
        assert seen == [
            (None, "fresh", None),
            ("R", "resumed", "R"),
            (None, "rotated", "R"),
            *(("E", "resumed", "E"), (None, "restarted", "E")),
        ]
        assert store.running_turn(KEY) is None

    def test_without_a_lease_it_is_looked_at_too(self, make_store):
        store = make_store(max_turns=1)
        store.resume(KEY, Agent("R"), place=HERE)
        with pytest.raises(SessionElsewhere):
            make_store().resume(KEY, Agent(), lease=False, place=elsewhere(host="other"), on_elsewhere="raise")
        assert store.resume(KEY, Agent("E"), lease=False).how == "rotated"
        assert (store.get(KEY), store.peek(KEY).record) == ("E", None)

    def test_without_a_lease_nothing_counts_and_that_is_said_once(self, make_store, caplog):
        store, unlimited = make_store(max_turns=2, max_context_tokens=9, give_up_after=1), make_store(give_up_after=1)
        store.resume(KEY, Agent("R"))
        assert [unlimited.resume(KEY, Agent("R"), lease=False).how for _ in range(2)] == ["resumed"] * 2
        assert caplog.messages == []
        with pytest.raises(AgentError):
            store.resume(KEY, Agent(AgentError()), lease=False)
        assert store.resume(KEY, Agent("R"), lease=False).how == "resumed"
        assert store.peek(KEY).record.turns == 1
        [said] = [each for each in caplog.records if "without a lease" in each.message]
        assert (said.levelname, said.message.partition(": ")[2]) == ("WARNING", "max_turns, max_context_tokens")

    def test_what_is_known_of_the_session_before_is_not_that_of_the_new_one(self, make_store, record):
        store = make_store(max_turns=3)

        def started_another(_):
            store.save_early(KEY, E)
            return Turn(E)

        for _ in range(2):
            store.resume(KEY, lambda _: Turn(R), agent="claude")
        assert store.resume(KEY, started_another, agent="claude").how == "restarted"
        assert record() == {"session_id": E, "agent": "claude", "turns": 1}
        for how in ("resumed", "resumed", "rotated", "resumed"):
            # An agent that names its sessions by the conversation gives the same ID to a fresh one.
            assert store.resume(KEY, lambda _: Turn(E), agent="claude").how == how
        assert record()["turns"] == 2

    def test_giving_up_comes_first(self, make_store):
        store = make_store(max_turns=1, give_up_after=1)
        store.resume(KEY, Agent("R"))
        store.fail(store.acquire(KEY))
        assert store.resume(KEY, Agent("E")).how == "gave_up"


class TestPlace:
    def test_it_is_recorded_and_stays_with_the_session(self, store):
        store.resume(KEY, Agent("R"), place=HERE)
        store.resume(KEY, Agent("E"))
        found = store.peek(KEY).record
        assert (found.session_id, found.place, found.turns) == ("E", HERE, 2)
        store.resume(KEY, Agent("E"), place=Place("other"))
        assert store.peek(KEY).record.place == Place("other"), "nothing of another place is left"
        store.delete(KEY)
        store.resume(KEY, Agent("F"))
        assert store.peek(KEY).record.place == Place()

    @pytest.mark.parametrize("ran", [Judgement(Verdict.gone), None], ids=["refused", "another session"])
    def test_a_session_of_elsewhere_that_is_gone_has_moved(self, store, counters, ran):
        store.resume(KEY, Agent("R"), place=elsewhere(home="/root"))
        agent = Agent(AgentError(), "E") if ran else lambda _: Turn("E", previous_gone=True)
        result = store.resume(KEY, agent, judge=lambda _: ran, place=HERE)
        assert (result.how, result.previous, result.session_id, result.moved) == ("restarted", "R", "E", True)
        assert "made elsewhere (home): host 'build-7', home '/root'" in result.reason
        assert (store.get(KEY), counters()) == ("E", (0, 0, 2))
        assert not store.resume(KEY, Agent(AgentError(), "F"), judge=says(Verdict.gone), place=HERE).moved
        assert counters() == (1, 0, 3)

    @pytest.mark.parametrize("verdict", [Verdict.unusable, Verdict.invalid_id])
    def test_any_other_refusal_is_one(self, store, counters, verdict):
        store.resume(KEY, Agent("R"), place=elsewhere(host="other"))
        assert not store.resume(KEY, Agent(AgentError(), "E"), judge=says(verdict), place=HERE).moved
        assert counters() == (1, 0, 2)

    def test_elsewhere_it_can_be_left_alone(self, store, counters, free):
        store.resume(KEY, Agent(R), agent="claude", place=elsewhere(host="other"))
        with pytest.raises(SessionElsewhere, match=r"\(host\): host 'other'") as caught:
            store.resume(KEY, Agent(), agent="claude", place=HERE, on_elsewhere="raise")
        assert (caught.value.session_id, caught.value.place.host, caught.value.agent) == (R, "other", "claude")
        assert (caught.value.key, store.get(KEY), counters()) == (KEY, R, (0, 0, 1))
        assert free()

    @pytest.mark.parametrize(
        ("agent", "other", "raised", "moved"),
        [
            ("claude", {"directory": "/srv"}, False, True),  # only some of its versions are bound to it
            ("codex", {"directory": "/srv", "host": "other"}, False, False),
            ("gemini", {"directory": "/srv"}, True, True),
            (None, {"directory": "/srv"}, True, True),
            (None, {"directory": None, "home": None}, False, False),
        ],
    )
    def test_it_is_the_agent_that_is_bound(self, agent, other, raised, moved):
        store = fake_store()
        store.resume(KEY, Agent(R), agent=agent, place=elsewhere(**other))
        gone = {"agent": agent, "place": HERE, "judge": says(Verdict.gone)}
        if raised:
            with pytest.raises(SessionElsewhere):
                store.resume(KEY, Agent(), **gone, on_elsewhere="raise")
        else:
            assert store.resume(KEY, Agent(R), **gone | {"place": elsewhere(**other)}, on_elsewhere="raise").how == "resumed"
        assert store.resume(KEY, Agent(AgentError(), E), **gone).moved is moved

    @pytest.mark.parametrize(
        "made",
        [
            Place("h" * 12, "/home/worker/.claude", "/home/worker/src/acme-shop"),
            Place("h", "/a", "12:relative"),
            Place(None, None, "3:x"),
            Place(None, "/home/spät\udcff", "/home/spät\udcff/Ö\n"),
            Place("h", "/same", "/same"),
            Place("h", "", "/d" * 2000),
            Place("h", "/" + "x" * 4000),
            Place(),
        ],
    )
    def test_any_place_comes_back_as_it_was(self, store, made):
        store.resume(KEY, Agent("R"), place=made)
        assert store.peek(KEY).record.place == made
        lease = store.acquire(KEY)
        assert lease.record.place == made

    def test_what_is_no_place(self):
        store = fake_store()
        for wrong, error in (({"place": "host"}, TypeError), ({"on_elsewhere": "raise"}, InvalidSettings)):
            with pytest.raises(error, match="place"):
                store.resume(KEY, Agent(), **wrong)
        with pytest.raises(InvalidSettings, match="on_elsewhere"):
            store.resume(KEY, Agent(), place=HERE, on_elsewhere="skip")
        for wrong, error in ((7, TypeError), ("a\0b", InvalidSettings), ("x" * 4097, InvalidSettings)):
            with pytest.raises(error, match="directory of a Place"):
                Place(directory=wrong)


class TestAnotherAgent:
    def test_its_session_is_not_tried_and_stands_until_the_fresh_one_is_saved(self, store, record):
        store.resume(KEY, Agent(R), agent="claude")
        failing, agent = Agent(AgentError()), Agent(E)
        with pytest.raises(AgentError):
            store.resume(KEY, failing, agent="codex", judge=says(Verdict.gone))
        assert (failing.asked, store.get(KEY)) == ([None], R)
        result = store.resume(KEY, agent, agent="codex")
        assert (agent.asked, result.how, result.session_id) == ([None], "fresh", E)
        assert "is a session of claude" in result.reason
        assert record() == {"session_id": E, "agent": "codex", "turns": 1}

    def test_the_same_sessions_by_another_name(self, store):
        store.resume(KEY, Agent(R), agent="claude")
        assert store.resume(KEY, Agent(R), agent="claude-agent-sdk").how == "resumed"
        assert store.peek(KEY).record.agent == "claude"


class TestALeaseThatIsBroken:
    def test_it_is_free_at_once_and_the_run_that_had_it_can_not_save(self, store):
        seen = []

        def run(_):
            held = store.break_lease(KEY)
            again = store.break_lease(KEY)
            successor = store.resume(KEY, Agent("S"))
            seen.append((held.key, held.holder.count(":"), 0 < held.remaining_ms <= 30_000, again, successor.saved))
            return Turn("E")

        result = store.resume(KEY, run)
        assert seen == [(KEY, 2, True, None, True)]
        assert (result.saved, store.get(KEY)) == (False, "S")
        assert "another worker took the conversation over" in result.reason

    def test_nobody_has_to_come_after_it(self, store, counters, free):
        def run(_):
            assert store.break_lease(KEY)
            raise AgentError

        store.set(KEY, "R")
        with pytest.raises(LeaseHeld):
            store.resume(KEY, run, judge=says(Verdict.gone))
        assert (store.get(KEY), counters()) == ("R", (1, 0, 0))
        assert free()

    def test_its_holder_is_told_by_the_next_renewal(self, store):
        lease = store.acquire(KEY)
        assert store.break_lease(KEY).holder == lease.token
        assert not store.renew(lease)
        assert not store.save(lease, "E")
        assert not store.release(lease)
        assert store.get(KEY) is None

    def test_what_nobody_holds(self, store, lapse, raw, namespace):
        assert store.break_lease(KEY) is None
        lease = store.acquire(KEY)
        lapse(KEY)
        assert store.break_lease(KEY) is None
        assert store.renew(lease)
        raw.persist(Keys(namespace).lease(KEY))
        assert store.break_lease(KEY).holder == lease.token
        assert raw.pttl(Keys(namespace).lease(KEY)) > 0


def test_a_record_fits_beside_its_id(namespace):
    """As measured on Valkey 9, which shows the memory of a key with all that belongs to it.

    The embedded one allocates with libc, whose chunk is 16 bytes larger now and then: what is left of a free one is given
    along where it is too small for another. So each place is measured in several conversations, and the least counts.
    """
    with (
        EmbeddedServer() as server,
        redis.Redis.from_url(server.url) as raw,
        SessionStore.from_url(server.url, StoreSettings(namespace=namespace[:8])) as store,
    ):
        measure_records(store, Keys(namespace[:8]), raw)


def measure_records(store, keys, raw):
    for place in (
        Place("build-worker", "/home/worker/.claude", "/home/worker/src/acme-shop"),
        Place("build-worker", "/home/worker/.claude", "/srv/agents/acme-shop-42"),
        Place("build-worker", "/home/worker1/.claude-reviewers", "/home/worker1/projects/acme-sh"),
    ):
        sizes = []
        for number in range(42, 50):
            conversation = f"acme/shop#{number}:r"
            record = keys.record(conversation)
            raw.delete(*keys.leased(conversation))  # a record that was once larger keeps its room
            for _ in range(2):
                store.resume(conversation, lambda _: Turn(R, context_tokens=145_123), agent="claude", place=place)
            raw.hset(record, "u", 12_345_678)
            assert {*raw.hkeys(record)} == {*map(str.encode, RECORD_FIELDS[:7])}
            sizes.append(raw.memory_usage(record, samples=0))
        assert min(sizes) <= 250, sizes
