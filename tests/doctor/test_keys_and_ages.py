"""The doctor's checks of keys, clocks, clients, and max ages by agent."""

from __future__ import annotations

import time

import pytest
import redis
import time_machine

from redis_sessions import InvalidSettings, SessionStore, StoreSettings
from redis_sessions.doctor.connection import client, round_trip
from redis_sessions.doctor.server import Server
from redis_sessions.keys import Keys
from redis_sessions.settings import DAY_MS
from tests.doctor.support import KEYS, about, finding_of, found, healthy, troubles
from tests.test_report import plant_poison

pytestmark = pytest.mark.plants_immortal_keys


def test_keys_with_faults(make_store, raw, namespace):
    keys = Keys(namespace)
    store = make_store(session_max_age_ms=5_400_000)
    before = troubles(store.doctor())
    assert not {"no-ttl", "max-age", "values", "names", "leases", "counters"} & set(before)
    raw.set(keys.session_id("immortal"), "ID-1")
    raw.set(keys.session_id("older"), "ID-1", px=DAY_MS)
    raw.set(keys.session_id("oldest"), "ID-1", px=DAY_MS)
    poison = plant_poison(raw, namespace)
    raw.set(keys.lease("stuck"), "a:1:b")
    raw.set(keys.counter("resumes_total"), "many")
    diagnosis = store.doctor()
    planted = {"no-ttl": "broken", "max-age": "warning", "values": "warning", "leases": "warning", "counters": "broken"}
    assert troubles(diagnosis) == before | planted
    assert found(diagnosis, "max-age").found == "more than 90m left: 2 sessions"
    assert found(diagnosis, "values").found == f"no session ID in {poison} keys, {poison} of them without a TTL"
    assert f"--namespace {namespace} --max-age 90m" in found(diagnosis, "no-ttl").remedy

    store.retime(5_400_000)
    for key in (*raw.scan_iter(f"{namespace}:id:*"), keys.lease("stuck")):
        if raw.pttl(key) == -1:
            raw.delete(key)
    raw.set(keys.counter("resumes_total"), 7, px=DAY_MS)
    assert troubles(store.doctor()) == before | {"counters": "warning"}
    assert found(store.doctor(), "counters").remedy == f"redis-cli PERSIST {namespace}:counter:resumes_total"
    raw.delete(keys.counter("resumes_total"))
    raw.lpush(keys.counter("resumes_total"), 1)
    assert troubles(store.doctor()) == before | {"counters": "broken"}


def test_clocks_that_differ(tmp_path):
    with healthy(tmp_path / "data") as (store, _):
        for hours in (-1, 1):
            with time_machine.travel(time.time() + hours * 3_600, tick=True):
                diagnosis = store.doctor()
            assert troubles(diagnosis) == {"clock": "warning"}
            assert ("ahead of" if hours > 0 else "behind") in found(diagnosis, "clock").found


def test_an_unsafe_client_that_was_passed_in(tmp_path):
    with healthy(tmp_path / "data") as (store, _):
        url = f"redis://sessions:s3cret%2Fx@127.0.0.1:{store.client.get_connection_kwargs()['port']}"
        with SessionStore(redis.Redis.from_url(url)) as other:
            assert troubles(other.doctor()) == {"client": "warning"}
            assert "another's session ID" in found(other.doctor(), "client").found


@pytest.mark.parametrize(
    ("agent", "max_age_ms", "status"),
    [
        (None, DAY_MS, "ok"),
        (None, 31 * DAY_MS, "warning"),
        ("claude", 30 * DAY_MS, "ok"),
        ("gemini", 30 * DAY_MS + 1, "warning"),
        ("agentcore", 900_000, "ok"),
        ("agentcore", 900_001, "broken"),
        ("codex", DAY_MS, "unknown"),
    ],
)
def test_max_age_by_agent(valkey, namespace, agent, max_age_ms, status):
    with valkey.sync(StoreSettings(namespace=namespace, session_max_age_ms=max_age_ms)) as store:
        assert found(store.doctor(agent), "agent").status == status
        with pytest.raises(InvalidSettings, match=r"name one of agentcore, .*claude"):
            store.doctor("nobody")


def test_slow_round_trips():
    slow = [finding_of(round_trip, about(Server(KEYS, answers={"timing": (trip_ms, 0)}))) for trip_ms in (0.2, 49.9, 50)]
    assert [finding.status for finding in slow] == ["ok", "ok", "warning"]


def test_clients_of_an_unknown_kind():
    assert finding_of(client, about()).status == "unknown"


@pytest.mark.parametrize("age_ms", [1, 999, 1_000, 90_000, 5_400_000, DAY_MS, 2 * DAY_MS, 3 * DAY_MS + 1])
def test_durations_in_remedies_are_exact(age_ms):
    from redis_sessions.operations.text import exact_duration, parse_duration_ms

    assert parse_duration_ms(exact_duration(age_ms), "--max-age") == age_ms
