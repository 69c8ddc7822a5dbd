"""Import and export of sessions.json, on every server and in both flavors."""

from __future__ import annotations

import json
import random
import time

import pytest

from redis_sessions import LegacyFileError
from redis_sessions.keys import Keys
from redis_sessions.legacy import file as legacy
from redis_sessions.settings import DAY_MS

HOUR_MS = 3_600_000


@pytest.fixture
def now_ms(raw):
    seconds, microseconds = raw.time()
    return seconds * 1000 + microseconds // 1000


@pytest.fixture
def file(tmp_path):
    def write(document):
        path = tmp_path / "sessions.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


def record(session_id, used_at_ms):
    return {"id": session_id, "last_used_at": used_at_ms}


def figures(result):
    assert result.imported + result.expired + result.kept + result.rejected == result.total
    assert result.rejected == len(result.rejects)
    return (result.imported, result.expired, result.kept, result.rejected)


def test_each_entry_gets_its_outcome_and_its_remaining_ttl(store, raw, namespace, now_ms, file):
    store.set("live", "ID-live")
    path = file(
        {
            "recent": record("ID-1", now_ms - HOUR_MS),
            "ahead": record("ID-2", now_ms + 4 * 60_000),
            "old": record("ID-3", now_ms - DAY_MS - 1),
            "bare": "ID-4",
            "never": record("ID-5", 0),
            "live": record("ID-6", now_ms),
            "dash": "--flag",
            "future": record("ID-7", now_ms + 6 * 60_000),
        }
    )
    result = store.import_legacy(path)
    assert figures(result) == (2, 3, 1, 2)
    assert {reject.key: reject.source for reject in result.rejects}["dash"] == '"dash": "--flag"'
    assert {row.key: row.session_id for row in store.sessions()} == {
        "recent": "ID-1",
        "ahead": "ID-2",
        "live": "ID-live",
    }
    keys = Keys(namespace)
    assert DAY_MS - HOUR_MS - 20_000 < raw.pttl(keys.session_id("recent")) <= DAY_MS - HOUR_MS
    assert DAY_MS - 20_000 < raw.pttl(keys.session_id("ahead")) <= DAY_MS

    again = store.import_legacy(path)
    assert figures(again) == (0, 3, 3, 2)
    assert DAY_MS - HOUR_MS - 20_000 < raw.pttl(keys.session_id("recent")) <= DAY_MS - HOUR_MS


def test_a_dry_run_says_the_same_and_writes_nothing(store, now_ms, file):
    store.set("live", "ID-live")
    path = file({"a": record("ID-1", now_ms), "live": record("ID-2", now_ms), "old": "ID-3", "bad": 7})
    assert figures(store.import_legacy(path, dry_run=True)) == (1, 1, 1, 1)
    assert store.get("a") is None
    assert store.get("live") == "ID-live"
    assert figures(store.import_legacy(path)) == (1, 1, 1, 1)


def test_entries_without_a_time_can_be_trusted(store, raw, namespace, now_ms, file):
    path = file({"bare": "ID-1", "timeless": {"id": "ID-2"}, "timed": record("ID-3", 0)})
    assert figures(store.import_legacy(path)) == (0, 3, 0, 0)
    assert figures(store.import_legacy(path, assume_used_at=now_ms - HOUR_MS)) == (2, 1, 0, 0)
    assert raw.pttl(Keys(namespace).session_id("bare")) <= DAY_MS - HOUR_MS
    store.delete("bare")
    assert figures(store.import_legacy(path, assume_used_at="mtime")) == (1, 1, 1, 0)
    assert raw.pttl(Keys(namespace).session_id("bare")) > DAY_MS - 60_000


@pytest.mark.parametrize("text", ['{"a": {"id": "ID-1", "last_used_at": 1732250000000}, }', "[]", ""])
def test_of_a_broken_file_nothing_is_written(store, file, text):
    with pytest.raises(LegacyFileError):
        store.import_legacy(file(text))
    assert list(store.sessions()) == []


def test_batches_and_progress_and_the_max_age_for_all(make_store, raw, namespace, now_ms, file):
    store = make_store(batch_size=10)
    heard = []
    path = file({f"key{n}": record(f"ID-{n}", now_ms) for n in range(95)})
    store.import_legacy(path, dry_run=True)
    assert raw.hgetall(Keys(namespace).settings()) == {}
    result = store.import_legacy(path, progress=lambda done, total: heard.append((done, total)))
    assert raw.hgetall(Keys(namespace).settings()) == {b"max_age_ms": str(DAY_MS).encode()}
    assert figures(result) == (95, 0, 0, 0)
    assert heard == [(n, 95) for n in (*range(10, 95, 10), 95)]


def test_a_mixed_file_of_ten_thousand_with_three_hundred_broken_ones(store, now_ms, file):
    rng = random.Random(7)
    broken = [
        7,
        None,
        [],
        {},
        "--flag",
        "two words",
        record("ID", -1),
        record("ID", 1.5),
        record("ID", "yesterday"),
        {"id": 3},
    ]
    entries = {f"broken{n}": rng.choice(broken) for n in range(300)}
    entries |= {f"recent{n}": record(f"ID-{n}", now_ms - rng.randrange(DAY_MS - 600_000)) for n in range(6000)}
    entries |= {f"old{n}": record(f"ID-{n}", now_ms - DAY_MS - rng.randrange(1, 10**9)) for n in range(2000)}
    entries |= {f"bare{n}": f"ID-{n}" for n in range(1700)}
    mixed = list(entries.items())
    rng.shuffle(mixed)
    result = store.import_legacy(file(dict(mixed)))
    assert result.total == 10_000
    assert figures(result) == (6000, 3700, 0, 300)
    assert store.report().live == 6000


@pytest.mark.everywhere
def test_an_export_imported_again_gives_the_same_store(make_store, raw, namespace, tmp_path):
    store, copy = make_store(scan_count=10), make_store(namespace=f"{namespace}-copy")
    rng = random.Random(7)
    for n in range(60):
        store.set(f"schlüssel {n} {{}}\n", f"ID-{n}")
        raw.pexpire(Keys(namespace).session_id(f"schlüssel {n} {{}}\n"), rng.randrange(60_000, DAY_MS))
    path, began_ms = tmp_path / "sessions.json", time.monotonic() * 1000
    exported = store.export(path)
    assert (exported.exported, exported.not_timed, exported.skipped, exported.approximate) == (60, 0, 0, False)
    assert figures(copy.import_legacy(path)) == (60, 0, 0, 0)
    before = {row.key: row for row in store.sessions()}
    after = {row.key: row for row in copy.sessions()}
    assert before.keys() == after.keys()
    # Times and TTLs are read one after the other: as far apart as the machine is slow.
    slack_ms = 100 + time.monotonic() * 1000 - began_ms
    for key, row in before.items():
        assert row.session_id == after[key].session_id
        assert abs(row.last_used_at_ms - after[key].last_used_at_ms) < slack_ms
    assert legacy.session_ids(path) == {f"ID-{n}" for n in range(60)}


@pytest.mark.plants_immortal_keys
def test_an_export_counts_sessions_without_a_time_as_used_now(store, raw, namespace, now_ms, tmp_path):
    keys = Keys(namespace)
    store.set("immortal", "ID-1")
    raw.persist(keys.session_id("immortal"))
    store.set("over", "ID-2")
    raw.pexpire(keys.session_id("over"), 3 * DAY_MS)
    raw.set(keys.session_id("bad"), "two words")
    exported = store.export(tmp_path / "out.json")
    assert (exported.exported, exported.not_timed, exported.skipped) == (2, 2, 1)
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written) == {"immortal", "over"}
    assert all(abs(entry["last_used_at"] - now_ms) < 20_000 for entry in written.values())


def test_an_export_that_fails_leaves_the_old_file(store, tmp_path):
    store.set("a", "ID-1")
    path = tmp_path / "out.json"
    path.write_text("old")

    def fail(done, about):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.export(path, progress=fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]
