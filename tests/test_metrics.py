"""Metrics: what a scrape shows, what it sends to Redis, and that an outage neither fails nor delays it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from redis_sessions import SessionStore, StoreSettings, Turn, metrics
from redis_sessions.client import pool as pools
from redis_sessions.keys import COUNTERS, Keys
from redis_sessions.metrics.collector import Snapshot
from redis_sessions.server import EmbeddedServer
from redis_sessions.settings import DAY_MS
from tests.servers import wait_until
from tests.stores import ByUser

FAILURES = "claude_session_resume_failures_total"
UP = "redis_sessions_up"
LIVE = "redis_sessions_live_sessions"
SCAN = "redis_sessions_scan"
AGE = f"{SCAN}_age_seconds"
NEXT = "redis_sessions_next_expiry_seconds"
UUID = "5f2c9a7e-1d3b-4c58-8f60-2b7a9c4e6d15"
# Where a server is away; one that is there may be slow, on a busy machine.
QUICK = {"deadline_ms": 200, "socket_timeout_ms": 10_000}
TURNS = ["1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0", "500.0", "1000.0", "+Inf"]
TOKENS = ["10000.0", "20000.0", "50000.0", "100000.0", "150000.0", "200000.0", "500000.0", "1000000.0", "+Inf"]


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def server():
    with EmbeddedServer() as server:
        yield server


def register(*stores, **options):
    """Register with a long wait for scans: on a busy machine any scan may take a second."""
    return metrics.register(*stores, **{"scan_wait_ms": 60_000} | options)


def a_store(server, namespace="sessions", kind=SessionStore, **settings):
    return kind.from_url(server.url, StoreSettings(namespace=namespace, **QUICK | settings))


def scrape(registry):
    """What a scrape shows: values by name, and by name and value where there is another label than the namespace."""
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            more = [value for label, value in sample.labels.items() if label != "namespace"]
            found[(sample.name, *more) if more else sample.name] = sample.value
    return found


class Slow(SessionStore):
    """A store whose scans wait until `go` is set."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.began, self.go = [], threading.Event()

    def report(self, progress=None, **options):
        self.began.append(threading.current_thread())
        self.go.wait()
        return super().report(progress, **options)


# What it shows


@pytest.mark.plants_immortal_keys
def test_samples(place, raw, namespace, registry):
    keys = Keys(namespace)
    for number in range(3):
        raw.set(keys.session_id(f"fresh#{number}"), "ID-1", px=DAY_MS - 1_000)
    raw.set(keys.session_id("older"), "ID-1", px=DAY_MS - 7_200_000)
    raw.set(keys.session_id("immortal"), "ID-1")
    raw.set(keys.session_id("over"), "ID-1", px=2 * DAY_MS)
    raw.set(keys.session_id("words"), "two words", px=DAY_MS)
    with contextlib.closing(place.sync(StoreSettings(namespace=namespace))) as store:
        for _ in range(2):
            store.increment_resume_failures()
        store.resume("turn", lambda _: Turn(UUID, None, context_tokens=42_000), agent="claude")
        store.acquire("held")
        # Of the users of `acl`, the one that can't write is enough.
        register(store._stores["report"] if isinstance(store, ByUser) else store, registry=registry)
        shown = scrape(registry)
    timing = {name: shown.pop(name) for name in (AGE, NEXT, f"{SCAN}_duration_seconds", f"{SCAN}_approximate")}
    assert shown == {
        FAILURES: 2,
        "redis_sessions_resume_failures_total": 2,
        "redis_sessions_resumes_total": 0,
        "redis_sessions_fresh_starts_total": 1,
        "redis_sessions_rotations_total": 0,
        "redis_sessions_gave_up_total": 0,
        UP: 1,
        LIVE: 7,
        (f"{LIVE}_by_agent", "claude"): 1,
        (f"{LIVE}_by_agent", "unknown"): 6,
        "redis_sessions_leases_held": 1,
        **{("redis_sessions_turns_bucket", le): 1 for le in TURNS},
        **{("redis_sessions_context_tokens_bucket", le): le not in TOKENS[:2] for le in TOKENS},
        "redis_sessions_keys_without_ttl": 1,
        "redis_sessions_keys_over_max_age": 1,
        "redis_sessions_keys_invalid": 1,
        **{("redis_sessions_idle_seconds_bucket", bound): 4 for bound in ("60.0", "300.0", "900.0", "1800.0", "3600.0")},
        **{
            ("redis_sessions_idle_seconds_bucket", bound): 5
            for bound in ("10800.0", "21600.0", "43200.0", "86400.0", "+Inf")
        },
    }
    age_s, next_s, duration_s, approximate = timing.values()
    assert 0 <= age_s < 30
    assert 0 <= 79_200 - next_s < 30
    assert 0 <= duration_s < 30
    assert approximate == 0


def test_namespace_labels_in_both_formats(valkey, namespace, registry):
    with a_store(valkey, namespace) as one, a_store(valkey, f"{namespace}.2") as other:
        one.set("a", "ID-1")
        register(one, other, registry=registry)
        for text in (openmetrics(registry), openmetrics(registry.restricted_registry([LIVE]))):
            families = list(text_string_to_metric_families(text.decode()))
            for family in families:
                labels = {sample.labels["namespace"] for sample in family.samples}
                of_one = any(part in family.name for part in ("next_expiry", "by_agent"))
                assert labels == ({namespace} if of_one else {namespace, f"{namespace}.2"})
        assert [family.name for family in families] == [LIVE]
        plain = generate_latest(registry).decode()
        assert len(re.findall(f"^# TYPE {FAILURES} counter$", plain, re.MULTILINE)) == 1
        assert f'{LIVE}{{namespace="{namespace}"}} 1.0' in plain
        one.delete("a")


# What it costs


def calls(store, command):
    found = store.client.info("commandstats").get(f"cmdstat_{command}")
    return found["calls"] if found else 0


def test_registering_sends_nothing(server, registry):
    server.kill()
    with a_store(server) as store:
        register(store, registry=registry)
        assert scrape(registry) == {UP: 0}


def test_a_scan_is_kept_until_it_is_too_old(server, registry, monkeypatch):
    monkeypatch.setattr("redis_sessions.metrics.collector.LEASES_MAX_AGE_S", 60)
    with a_store(server) as store:
        collector = register(store, registry=registry)
        store.set("a", "ID-1")
        first = scrape(registry)
        store.set("b", "ID-1")
        store.increment_resume_failures()
        second = scrape(registry)
        assert (first[LIVE], second[LIVE]) == (1, 1)
        assert (first[FAILURES], second[FAILURES]) == (0, 1)  # counters are never kept from the last scrape
        assert second[AGE] > first[AGE]
        # One of the session keys and one of the leases.
        assert calls(store, "scan") == 2
        registry.unregister(collector)
        register(store, registry=registry, scan_max_age_ms=0)
        assert scrape(registry)[LIVE] == 2
        assert scrape(registry)[LIVE] == 2
        assert calls(store, "scan") == 6


def test_leases_are_listed_more_often(server, registry, monkeypatch):
    monkeypatch.setattr("redis_sessions.metrics.collector.LEASES_MAX_AGE_S", 0)
    monkeypatch.setattr("redis_sessions.metrics.collector.LEASES_REST", 0)
    with a_store(server) as store:
        register(store, registry=registry)
        for held in range(3):
            shown = scrape(registry)
            assert (shown["redis_sessions_leases_held"], shown[LIVE]) == (held, 0)
            store.save(store.acquire(f"saved {held}"), "ID-1")
            store.acquire(f"held {held}")


def test_scrapes_at_once_share_one_scan(server, registry, monkeypatch):
    monkeypatch.setattr("redis_sessions.metrics.collector.LEASES_MAX_AGE_S", 60)
    with a_store(server, kind=Slow) as store, ThreadPoolExecutor(8) as threads:
        register(store, registry=registry, scan_max_age_ms=60_000)
        store.set("a", "ID-1")
        scrapes = [threads.submit(scrape, registry) for _ in range(8)]
        wait_until(lambda: calls(store, "get") == 8 * len(COUNTERS), "all have read the counters")
        store.go.set()
        assert {scrape.result()[LIVE] for scrape in scrapes} == {1}
        assert len(store.began) == 1
        assert calls(store, "scan") == 2


def test_a_slow_scan_is_shown_by_a_later_scrape(server, registry):
    with a_store(server, kind=Slow) as store:
        register(store, registry=registry, scan_wait_ms=1)
        for _ in range(3):
            shown = scrape(registry)
            assert shown[UP] == 1
            assert LIVE not in shown
            assert AGE not in shown
        wait_until(lambda: store.began, "it scans")
        [scan] = store.began
        store.go.set()
        scan.join()
        assert scrape(registry)[LIVE] == 0
        assert len(store.began) == 1


# Redis away


def test_an_outage_hides_counters_and_keeps_the_last_scan(tmp_path, registry, caplog, monkeypatch):
    monkeypatch.setattr(pools, "FRESH_S", -1)  # so that what is said is never of an old connection
    with EmbeddedServer(directory=tmp_path / "data") as server, a_store(server) as store:
        register(store, registry=registry, scan_max_age_ms=0)
        store.set("a", "ID-1")
        for _ in range(7):
            store.increment_resume_failures()
        before = scrape(registry)
        server.kill()
        for _ in range(2):
            away = scrape(registry)
            assert away[UP] == 0
            assert FAILURES not in away
            assert away[LIVE] == 1
            assert away[AGE] > before[AGE]
        server.start()
        for _ in range(2):
            assert (scrape(registry)[UP], scrape(registry)[FAILURES]) == (1, 7)
        began_s = time.monotonic()
        assert scrape(registry)[AGE] <= time.monotonic() - began_s
    # Logged when it begins and when it ends, not at every scrape.
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "no counters: " in said[0]
    assert server.url.split("/")[2] in said[0]
    assert "can be read again" in said[1]


def test_a_corrupt_counter_is_left_out(server, registry):
    with a_store(server) as store:
        register(store, registry=registry)
        store.set("a", "ID-1")
        store.client.lpush(f"{store.settings.namespace}:counter:resume_failures_total", 1)
        seen = scrape(registry)
    assert (seen[UP], seen[LIVE]) == (1, 1)
    assert FAILURES not in seen


def test_scrapes_of_a_hanging_server_end(server, registry):
    with a_store(server, deadline_ms=1_000, socket_timeout_ms=300) as store:
        register(store, registry=registry, scan_max_age_ms=0)
        assert scrape(registry)[UP] == 1
        with store.client.client() as own:
            pid = own.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            with ThreadPoolExecutor(4) as threads:
                shown = [scrape.result() for scrape in [threads.submit(scrape, registry) for _ in range(4)]]
            assert time.monotonic() - began_s < 8  # far above the deadline: only "not forever"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert [(each[UP], each[LIVE]) for each in shown] == [(0, 0)] * 4
        wait_until(lambda: scrape(registry)[UP] == 1, "it answers again")


def test_a_user_without_scan_gets_the_counters(valkey, namespace, registry, caplog):
    valkey.raw.acl_setuser("counting", enabled=True, passwords=["+p"], keys=["*"], commands=["+get", "+hello"])
    try:
        place = valkey.url.replace("redis://", "redis://counting:p@")
        with SessionStore.from_url(place, StoreSettings(namespace=namespace)) as store:
            register(store, registry=registry)
            for _ in range(2):
                shown = scrape(registry)
                assert (shown[UP], shown[FAILURES]) == (1, 0)
                assert LIVE not in shown
            assert ["NOPERM" in str(error) for error in Snapshot(store).errors] == [True]
    finally:
        valkey.raw.acl_deluser("counting")
    said = [record.getMessage() for record in caplog.records]
    # The key scan and the list of leases, of the collector and of the snapshot.
    assert len(said) == 4
    assert ["no list of leases: " in line or "no key scan: " in line for line in said] == [True] * 4
