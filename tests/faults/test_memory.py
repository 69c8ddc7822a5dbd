"""A server whose memory is full: what goes first under `volatile-ttl`, and what goes on under `noeviction`."""

from __future__ import annotations

import random
from statistics import mean

import pytest
import redis

from redis_sessions import AsyncSessionStore, SessionStore, StoreSettings, StoreUnavailable, Turn
from redis_sessions.keys import RESUME_FAILURES, RESUMES, Keys
from redis_sessions.server import EmbeddedServer
from redis_sessions.settings import DAY_MS
from tests.servers import find_redis_server
from tests.stores import PATIENT, Blocking

BATCH = 1_000
BYTES_A_SESSION = 75  # about half of what one takes, so that about half of all must go
LEASES = 50


@pytest.fixture(params=["valkey", "redis"])
def server(request):
    binary = find_redis_server() if request.param == "redis" else None
    if request.param == "redis" and binary is None:
        pytest.skip("no redis-server on the PATH")
    with EmbeddedServer(binary=binary) as server:
        yield server


@pytest.fixture
def client(server):
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture(params=["sync", "async"])
def store(request, server, loop):
    if request.param == "sync":
        store = SessionStore.from_url(server.url, PATIENT)
    else:
        store = Blocking(AsyncSessionStore.from_url(server.url, PATIENT), loop)
    yield store
    store.close()


def fill(client, keys, sessions):
    """Sessions of every age up to the max age, in random order, as sets that long ago would have left them."""
    ages = random.sample(range(sessions), sessions)
    for start in range(0, sessions, BATCH):
        pipe = client.pipeline(transaction=False)
        for age in ages[start : start + BATCH]:
            ttl_ms = DAY_MS - age * (DAY_MS - 60_000) // sessions
            pipe.execute_command("SET", keys.session_id(f"{age}"), f"5f2c9a1e-0000-4000-8000-{age:012d}", "PX", ttl_ms)
        pipe.execute()


@pytest.mark.parametrize("sessions", [20_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_the_longest_unused_sessions_are_evicted_first(server, client, store, sessions, ledger):
    """Eviction samples, so it is not exact; but what was used lately, leases and counters stay.

    Where an exact one would have taken all sessions older than A and none younger, the youngest that went was measured at
    0.88 A on Valkey 9.1 and Redis 7.0, 0.65 A on Redis 8.6, and those that went were 2.5 to 3.8 times as old as those that
    stayed.
    """
    tally, keys = ledger("memory full, volatile-ttl"), Keys(StoreSettings().namespace)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + sessions * BYTES_A_SESSION)
    leases = [store.acquire(f"leased {n}") for n in range(LEASES)]
    counted = store.increment_resume_failures()
    fill(client, keys, sessions)
    alive = {int(row.key) for row in store.sessions()}
    gone = set(range(sessions)) - alive
    tally.injected += client.info("stats")["evicted_keys"]
    assert len(gone) > sessions / 10
    assert len(alive) > sessions / 10
    assert min(gone) > 0.55 * len(alive)  # all of them, were it exact
    assert mean(gone) > 2 * mean(alive)

    for n in range(BATCH):
        store.set(f"new {n}", f"ID-{n}")
        tally.lost += store.get(f"new {n}") != f"ID-{n}"
    tally.wrong += sum(store.get(f"{age}") != f"5f2c9a1e-0000-4000-8000-{age:012d}" for age in range(100))
    tally.lost += sum(not store.renew(lease) for lease in leases)
    tally.lost += store.resume_failures_total() != counted
    result = store.resume("a turn", lambda asked: Turn("E", asked))
    tally.lost += not result.saved or store.get("a turn") != "E"
    tally.operations += 2 * BATCH + 100 + LEASES + 3
    tally.check()


def test_a_server_that_evicts_nothing_refuses_writes_and_still_reads(client, store, ledger):
    tally, keys = ledger("memory full, noeviction"), Keys(StoreSettings().namespace)
    store.set("a", "R")
    store.set("b", "R")
    store.increment_resume_failures()
    leases = {name: store.acquire(name) for name in ("held", "saved", "released", "rejected")}
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "100kb")
    tally.injected += 1
    for operation in (
        lambda: store.set("a", "E"),
        store.increment_resume_failures,
        lambda: store.acquire("b"),
        lambda: store.save(leases["saved"], "E"),
        lambda: store.resume("b", lambda _: pytest.fail("must not run"), on_outage="raise"),
    ):
        with pytest.raises(StoreUnavailable, match="OOM"):
            operation()
        tally.refused += 1
    ran = store.resume("b", lambda asked: Turn("E", asked))
    assert (ran.how, ran.saved) == ("fresh", False)
    assert "OOM" in ran.reason
    for operation, right in (
        (lambda: store.get("a"), "R"),
        (store.resume_failures_total, 1),
        (lambda: store.report().live, 2),
        (lambda: store.renew(leases["held"]), True),
        (lambda: store.release(leases["released"]), True),
        (lambda: store.reject(leases["rejected"]), True),
        (lambda: store.delete("b"), True),
    ):
        tally.wrong += operation() != right
        tally.operations += 1
    client.config_set("maxmemory", "256mb")
    assert store.save(leases["saved"], "E")
    assert client.get(keys.counter(RESUME_FAILURES)) == b"1"
    assert client.get(keys.counter(RESUMES)) is None
    tally.check()
