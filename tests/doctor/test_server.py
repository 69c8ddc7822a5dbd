"""The doctor's checks of a server: its settings, disk and replicas; each fix solves its finding."""

from __future__ import annotations

import pytest

from redis_sessions.doctor import server as checks
from redis_sessions.settings import DAY_MS
from tests.doctor.support import CHECKS, finding_of, found, healthy, replies, troubles
from tests.servers import wait_until

pytestmark = pytest.mark.plants_immortal_keys


def test_a_healthy_server_has_no_fault(tmp_path, binary):
    with healthy(tmp_path / "data", binary=binary) as (store, _):
        store.set("k", "ID-1")
        store.acquire("k")
        store.increment_resume_failures()
        diagnosis = store.doctor("claude")
    assert troubles(diagnosis) == {}
    assert [finding.check for finding in diagnosis.findings] == CHECKS
    assert (diagnosis.broken, diagnosis.warnings, diagnosis.unknown, diagnosis.ok) == (0, 0, 0, len(CHECKS))
    assert all(finding.why and finding.remedy is None for finding in diagnosis.findings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, {"eviction": "broken"}),
        ({"maxmemory_policy": "volatile-lru"}, {"eviction": "warning"}),
        ({"maxmemory_policy": "noeviction"}, {"eviction": "warning"}),
        ({"maxmemory": "0"}, {"memory": "warning"}),
        ({"maxmemory": "0", "maxmemory_policy": "noeviction"}, {"memory": "warning"}),
        ({"maxmemory": "900kb", "maxmemory_policy": "noeviction"}, {"memory": "broken", "eviction": "warning"}),
        ({"appendonly": "no"}, {"append-only": "broken"}),
        ({"appendonly": "no", "save": "60 1"}, {"append-only": "warning"}),
        ({"appendfsync": "no"}, {"appendfsync": "warning"}),
        ({"min_replicas_to_write": "1"}, {"replicas": "broken"}),
    ],
    ids=lambda value: " ".join(f"{name}={word}" for name, word in value.items()),
)
def test_server_settings(tmp_path, binary, settings, expected):
    # Redis 6.2 does not take it as one word of its command line.
    snapshots = {name: value for name, value in settings.items() if name == "save"}
    started_with = {name: value for name, value in settings.items() if name not in snapshots}
    with healthy(tmp_path / "data", binary=binary, **started_with) as (store, raw):
        for name, value in snapshots.items():
            raw.config_set(name, value)
        diagnosis = store.doctor()
    assert troubles(diagnosis) == expected
    assert all(found(diagnosis, check).remedy for check in expected)


def test_fixes_of_server_settings_work(tmp_path):
    with healthy(tmp_path / "data", maxmemory="0", maxmemory_policy="allkeys-lru", appendonly="no") as (store, raw):
        for check in troubles(store.doctor()):
            words = found(store.doctor(), check).remedy.removeprefix("redis-cli ").split()
            raw.execute_command(*words)
        wait_until(lambda: raw.info("persistence")["aof_rewrite_in_progress"] == 0, "the append-only file is there")
        assert troubles(store.doctor()) == {}


def test_evicted_keys(tmp_path):
    with healthy(tmp_path / "data", maxmemory="3mb") as (store, raw):
        for number in range(400):
            raw.set(f"other:{number}", "x" * 10_000, px=DAY_MS)
        assert troubles(store.doctor()) == {"memory": "warning"}


def test_failed_snapshot(tmp_path):
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "taken").mkdir()
    with healthy(tmp_path / "data", dbfilename="taken") as (store, raw):
        raw.bgsave()
        wait_until(lambda: raw.info("persistence")["rdb_last_bgsave_status"] != "ok", "the snapshot failed")
        assert troubles(store.doctor()) == {"disk": "broken"}


def test_replicas_not_needed_for_a_save(tmp_path):
    with healthy(tmp_path / "one", repl_diskless_sync_delay="0") as (store, raw):
        port = raw.get_connection_kwargs()["port"]
        with healthy(tmp_path / "two", replicaof=f"127.0.0.1 {port}") as (replica, raw_replica):
            wait_until(lambda: raw_replica.info("replication")["master_link_status"] == "up", "the replica is in step")
            assert troubles(store.doctor()) == {"replicas": "warning"}
            assert troubles(replica.doctor()) == {"role": "broken"}
            raw.config_set("min-replicas-to-write", 1)
            wait_until(lambda: raw.info("replication")["min_slaves_good_slaves"] == 1, "it counts as good")
            assert troubles(store.doctor()) == {}


@pytest.mark.parametrize(
    ("info", "status"),
    [
        ({"redis_version": "6.0.16"}, "broken"),
        ({"redis_version": "6.2.14"}, "ok"),
        ({"redis_version": "8.6.2"}, "ok"),
        ({"redis_version": "9.0.0"}, "warning"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.9"}, "warning"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.1"}, "ok"),
        ({"redis_version": "7.2.4", "valkey_version": "10.0.0"}, "warning"),
    ],
)
def test_versions(info, status):
    assert finding_of(checks.version, replies(info)).status == status
