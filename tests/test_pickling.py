"""What a worker process raises or returns arrives as it was in the process that started it: by pickle, and by copy."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

from redis_sessions import (
    InvalidSettings,
    Judgement,
    LeaseHeld,
    LegacyFileError,
    NotReplicated,
    Place,
    SessionBusy,
    SessionElsewhere,
    SessionStoreError,
    StoreSettings,
    Turn,
    Verdict,
    agents,
    legacy,
    server,
)
from redis_sessions.adapters import RunFailed
from redis_sessions.agents import Evidence, launchers
from redis_sessions.resume.turn import InvalidTurn
from redis_sessions.testing import fake_store
from tests.over import over
from tests.resume.stand_in import KEY, Agent, AgentError, says


def kinds_of(error):
    return {error}.union(*map(kinds_of, error.__subclasses__()))


assert {server.ServerError, launchers.PlaceUnknown, agents.UnknownAgent} <= kinds_of(SessionStoreError)

# Errors whose constructors differ from that of their base, with all that they can carry.
MADE = [
    LegacyFileError("is not JSON", line=3, column=7, shapes=("openclaw", legacy.Shape()), remedy="name its shape"),
    LeaseHeld(KEY, holder="host:1:ff", remaining_ms=5_000),
    LeaseHeld(KEY),
    SessionBusy(KEY, session_id="R"),
    SessionElsewhere(KEY, session_id="R", place=Place("host", "/home", "/work"), agent="codex", differs="host"),
    NotReplicated("the session ID is saved, but 0 replicas have it", key=KEY, replicas=0, remedy="look at the replicas"),
    RunFailed("the turn ended without success", Evidence(1, '{"type": "result"}', b"No conversation found", ["claude"])),
    InvalidTurn("run must return a redis_sessions.Turn, not str"),
]
MADE += [kind("is wrong", setting="url", remedy="give another") for kind in kinds_of(InvalidSettings)]
MADE += [kind("is wrong", key=KEY, remedy="do this") for kind in kinds_of(SessionStoreError) - {type(each) for each in MADE}]


def returned():
    """One of each thing that the methods of a store return or take."""
    store = fake_store()
    yield store.settings
    yield StoreSettings(namespace="mine", max_turns=5)
    yield store.resume(KEY, lambda _: Turn("R", {"any": "value"}), agent="claude", place=Place("host", "/home", "/work"))
    yield store.peek(KEY)
    yield store.acquire(KEY)
    yield store.acquire(KEY)
    yield from store.sessions()
    yield from store.leases()
    yield store.report(records=True)
    yield store.doctor()
    yield store.retime(60_000)
    yield Turn("R", ["value"], context_tokens=5)
    yield Judgement(Verdict.gone, "R", turn_began=True)
    yield agents.get_agent("claude")
    yield from legacy.known_shapes()


@over("made", MADE)
def test_an_error_keeps_its_text_and_all_that_it_carries(made):
    made.add_note("seen in a worker")
    for other in (copy.copy(made), *(pickle.loads(pickle.dumps(made, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1))):
        assert (type(other), str(other), other.args, vars(other)) == (type(made), str(made), made.args, vars(made))
        assert repr(other) == repr(made)
        assert getattr(other, "msg", None) == getattr(made, "msg", None)  # of an ImportError


@over("made", returned())
def test_results_and_settings_are_the_same(made):
    assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == made


def test_results_of_files_are_the_same(tmp_path):
    path, store = tmp_path / "sessions.json", fake_store()
    path.write_text('{"a": "E", "b": "two words"}')
    for made in (store.import_legacy(path, assume_used_at="mtime"), store.export(path)):
        assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == made


def turn_of_a_worker():
    store = fake_store()
    store.set(KEY, "R")
    return store.resume(KEY, Agent(AgentError("is in use")), judge=says(Verdict.busy))


def test_a_pool_of_processes_gets_the_error_of_its_worker():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for _ in range(2):  # an error that can't be read breaks the pool
            with pytest.raises(SessionBusy) as caught:
                pool.submit(turn_of_a_worker).result(60)
            assert (caught.value.key, caught.value.session_id) == (KEY, "R")
