"""Foreign values under the keys of a healthy server, and TTLs that were removed.

What may be written over: `set` and `save` replace whatever stands at the session key, of any type; a claim replaces a lease
that has lapsed, if it is a string; `delete` without an ID deletes the session key. All else leaves alone
what this package did not write.
"""

from __future__ import annotations

import json

import pytest

from redis_sessions import CorruptValue, Held, InvalidSessionID, LeaseHeld, SessionStoreError, Turn
from redis_sessions.keys import COUNTERS, LEASE_GRACE_MS, Keys
from redis_sessions.settings import DAY_MS

KEY = "acme/shop#42"
HOUR_MS = 3_600_000
WRONG_TYPE = object()
GARBAGE = [WRONG_TYPE, b"", b"two words", b"\xff\xfe\x00", b"x" * 9_000, b"--flag"]


@pytest.fixture
def keys(namespace):
    return Keys(namespace)


@pytest.fixture
def plant(raw):
    """Write a foreign value where a key of ours is, with a TTL by default; returns a function that reads it back."""

    def plant(redis_key, value, px=HOUR_MS):
        raw.delete(redis_key)
        if value is WRONG_TYPE:
            raw.lpush(redis_key, "x")
            if px:
                raw.pexpire(redis_key, px)
            return lambda: raw.type(redis_key) in (b"list", "list") and raw.llen(redis_key) == 1
        raw.set(redis_key, value, px=px)
        return lambda: raw.exists(redis_key) and raw.strlen(redis_key) == len(value)

    return plant


def ends_typed(tally, operation, *errors):
    """The operation is refused with one of these errors, and with no other."""
    with pytest.raises(errors):
        operation()
    tally.operations += 1
    tally.refused += 1


def gives(tally, operation, right):
    """The operation gives this."""
    tally.operations += 1
    tally.wrong += operation() != right


class TestAForeignSessionValue:
    @pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
    def test_every_operation_is_right_or_raises_a_typed_error(self, store, raw, keys, plant, value, tmp_path, ledger):
        self.meddle(ledger("session value overwritten"), store, raw, keys, plant, value, tmp_path)

    @pytest.mark.parametrize("place", ["valkey", "redis"], indirect=True)
    @pytest.mark.parametrize("megabytes", [16, pytest.param(64, marks=pytest.mark.long)])
    def test_of_many_megabytes(self, store, raw, keys, plant, megabytes, tmp_path, ledger):
        self.meddle(ledger("session value overwritten"), store, raw, keys, plant, bytes(megabytes << 20), tmp_path)

    def meddle(self, tally, store, raw, keys, plant, value, tmp_path):
        redis_key, path = keys.session_id(KEY), tmp_path / "sessions.json"
        store.set(KEY, "ID-1")
        lease = store.acquire(KEY)
        there = plant(redis_key, value)
        tally.injected += 1
        ends_typed(tally, lambda: store.get(KEY), InvalidSessionID, CorruptValue)
        ends_typed(tally, lambda: store.peek(KEY), InvalidSessionID, CorruptValue)
        gives(tally, lambda: store.renew(lease), True)
        gives(tally, lambda: store.reject(lease), True)
        gives(tally, lambda: store.delete(KEY, "ID-1"), False)
        gives(tally, lambda: store.release(lease), True)
        report = store.report()
        tally.wrong += (report.live, report.invalid) != (0, 1)
        gives(tally, lambda: list(store.sessions()), [])
        gives(tally, store.live_session_ids, frozenset())
        gives(tally, lambda: store.export(path).skipped, 1)
        path.write_text(json.dumps({KEY: "ID-legacy"}))
        gives(tally, lambda: store.import_legacy(path, assume_used_at="mtime").kept, 1)
        lease = store.acquire(KEY)
        assert (lease.session_id, lease.unusable) == (None, True)
        tally.lost += not there()
        gives(tally, lambda: store.save(lease, "ID-2"), True)
        gives(tally, lambda: store.get(KEY), "ID-2")
        for options in ({}, {"lease": False}):
            plant(redis_key, value)
            result = store.resume(KEY, lambda asked: Turn("ID-3", asked), **options)
            assert (result.value, result.how, result.saved) == (None, "fresh", True)
            assert "not a valid session ID" in result.reason
            gives(tally, lambda: store.get(KEY), "ID-3")
            tally.wrong += not 0 < raw.pttl(redis_key) <= DAY_MS
        there = plant(redis_key, value)
        gives(tally, lambda: store.set(KEY, "ID-4"), None)
        gives(tally, lambda: store.get(KEY), "ID-4")
        there = plant(redis_key, value)
        gives(tally, lambda: store.delete(KEY), True)
        tally.wrong += there()
        tally.check()

    def test_that_looks_like_an_id_is_taken_for_one_and_left_alone(self, store, keys, plant, ledger):
        tally = ledger("session value overwritten")
        store.set(KEY, "ID-1")
        lease = store.acquire(KEY)
        plant(keys.session_id(KEY), b"ID-other")
        tally.injected += 1
        gives(tally, lambda: store.get(KEY), "ID-other")
        gives(tally, lambda: store.reject(lease), True)
        gives(tally, lambda: store.delete(KEY, "ID-1"), False)
        store.release(lease)
        gives(tally, lambda: store.resume(KEY, lambda asked: Turn(asked, asked)).value, "ID-other")
        tally.check()


class TestAForeignLease:
    @pytest.mark.parametrize("value", GARBAGE[1:], ids=range(1, len(GARBAGE)))
    def test_that_never_expires_gets_a_ttl_and_lapses(self, store, raw, keys, plant, value, lapse, ledger):
        tally, redis_key = ledger("lease overwritten"), keys.lease(KEY)
        store.set(KEY, "ID-1")
        lease = store.acquire(KEY)
        there = plant(redis_key, value, px=None)
        tally.injected += 1
        for operation in (store.renew, store.release, store.reject, lambda lease: store.save(lease, "ID-late")):
            gives(tally, lambda operation=operation: operation(lease), False)
        gives(tally, lambda: store.get(KEY), "ID-1")
        held = store.acquire(KEY)
        assert isinstance(held, Held)
        assert len(held.holder) <= 200
        assert held.remaining_ms <= store.settings.lease_ms
        tally.wrong += not LEASE_GRACE_MS < raw.pttl(redis_key) <= LEASE_GRACE_MS + store.settings.lease_ms
        ends_typed(tally, lambda: store.resume(KEY, lambda _: pytest.fail("must not run")), LeaseHeld)
        tally.lost += not there()
        lapse(KEY)
        result = store.resume(KEY, lambda asked: Turn("ID-2", asked))
        tally.wrong += (result.value, result.saved) != ("ID-1", True)
        tally.check()

    def test_of_the_wrong_type_is_named_and_left_alone(self, store, keys, plant, ledger):
        tally = ledger("lease overwritten")
        store.set(KEY, "ID-1")
        lease = store.acquire(KEY)
        there = plant(keys.lease(KEY), WRONG_TYPE)
        tally.injected += 1
        for operation in (store.renew, store.release, store.reject, lambda lease: store.save(lease, "ID-late")):
            gives(tally, lambda operation=operation: operation(lease), False)
        gives(tally, lambda: store.get(KEY), "ID-1")
        ends_typed(tally, lambda: store.acquire(KEY), CorruptValue)
        ends_typed(tally, lambda: store.resume(KEY, lambda _: pytest.fail("must not run")), CorruptValue)
        gives(tally, lambda: store.resume(KEY, lambda asked: Turn(asked, asked), lease=False).value, "ID-1")
        tally.lost += not there()
        tally.check()


@pytest.mark.parametrize("value", [WRONG_TYPE, b"", b"many", b"\xff", b"9" * 30], ids=range(5))
def test_a_foreign_counter_stops_no_turn(store, keys, plant, value, ledger):
    tally = ledger("counters overwritten")
    kept = [plant(keys.counter(name), value) for name in COUNTERS]
    tally.injected += len(COUNTERS)
    ends_typed(tally, store.increment_resume_failures, SessionStoreError)
    if value != b"9" * 30:  # which is an integer, only too large to be counted on
        ends_typed(tally, store.resume_failures_total, CorruptValue)
        gives(tally, lambda: store.report().counters, dict.fromkeys(COUNTERS))
    for number in range(2):
        result = store.resume(KEY, lambda asked, number=number: Turn(f"ID-{number}", asked))
        tally.lost += not result.saved or store.get(KEY) != f"ID-{number}"
    tally.lost += sum(not there() for there in kept)
    tally.check()


@pytest.mark.plants_immortal_keys
def test_a_ttl_that_was_taken_away_comes_back(store, raw, keys, lapse, ledger):
    tally, redis_key = ledger("TTL taken away"), keys.session_id(KEY)
    for heal in (
        lambda: store.set(KEY, "ID-1"),
        lambda: store.save(store.acquire(KEY), "ID-1"),
        lambda: store.resume(KEY, lambda asked: Turn(asked, None)),
    ):
        store.set(KEY, "ID-1")
        raw.persist(redis_key)
        report = store.report()
        tally.wrong += (report.live, report.no_ttl) != (1, 1)
        gives(tally, lambda: store.peek(KEY)[:2], ("ID-1", None))
        heal()
        tally.wrong += not 0 < raw.pttl(redis_key) <= DAY_MS or store.report().no_ttl
        tally.injected += 1
    lease = store.acquire(KEY)
    raw.persist(keys.lease(KEY))
    tally.wrong += not store.renew(lease) or raw.pttl(keys.lease(KEY)) < 0
    raw.persist(keys.lease(KEY))
    assert isinstance(store.acquire(KEY), Held)
    lapse(KEY)
    gives(tally, lambda: store.resume(KEY, lambda asked: Turn(asked, asked)).value, "ID-1")
    tally.injected += 2
    tally.check()
