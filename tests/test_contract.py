"""The contract of the store, on every server and in both flavors. Each test is written once."""

from __future__ import annotations

import pytest

from redis_sessions import (
    CorruptValue,
    Held,
    InvalidKey,
    InvalidSessionID,
    Lease,
)
from redis_sessions.keys import LEASE_GRACE_MS, MAX_KEY_BYTES
from redis_sessions.settings import DAY_MS
from tests.over import over

pytestmark = pytest.mark.everywhere

KEYS = ["a", "acme/shop#42:reviewer", "spät {ab} %41", "{}", "a\nb\x00c", "*[?]", "日本語", "x" * MAX_KEY_BYTES]


@over("key", KEYS)
def test_get_returns_what_was_set_for_any_key(store, key):
    assert store.get(key) is None
    store.set(key, "0a1b-2c3d")
    assert store.get(key) == "0a1b-2c3d"
    assert {row.key: row.session_id for row in store.sessions()} == {key: "0a1b-2c3d"}
    assert store.delete(key)


def test_redis_holds_the_bare_id_with_the_max_age_as_ttl(make_store, raw, namespace):
    store = make_store(session_max_age_ms=5_000_000)
    store.set("a", "ID-1")
    assert raw.get(f"{namespace}:id:{{a}}") in (b"ID-1", "ID-1")
    assert 4_990_000 < raw.pttl(f"{namespace}:id:{{a}}") <= 5_000_000


def test_peek_returns_the_id_and_its_remaining_time(store, raw, namespace):
    assert store.peek("a") is None
    store.set("a", "ID-1")
    session_id, expires_in_ms, record = store.peek("a")
    assert session_id == "ID-1"
    assert DAY_MS - 60_000 < expires_in_ms <= DAY_MS
    assert record is None
    raw.pexpire(f"{namespace}:id:{{a}}", 60_000)
    assert store.peek("a").expires_in_ms <= 60_000  # peek doesn't extend the TTL either
    raw.set(f"{namespace}:id:{{a}}", "two words", px=60_000)
    with pytest.raises(InvalidSessionID):
        store.peek("a")


def test_every_set_starts_a_new_ttl_and_get_never_does(store, raw, namespace):
    redis_key = f"{namespace}:id:{{a}}"
    store.set("a", "ID-1")
    raw.pexpire(redis_key, 60_000)
    assert store.get("a") == "ID-1"
    assert raw.pttl(redis_key) <= 60_000
    store.set("a", "ID-1")
    assert raw.pttl(redis_key) > 60_000


def test_a_session_unused_for_the_max_age_is_absent(store, raw, namespace):
    store.set("a", "ID-1")
    raw.pexpireat(f"{namespace}:id:{{a}}", 1)
    assert store.get("a") is None
    assert store.report().live == 0


def test_delete_removes_the_id_or_only_that_id(store):
    assert store.delete("a") is False
    store.set("a", "ID-1")
    assert store.delete("a", "ID-2") is False
    assert store.get("a") == "ID-1"
    assert store.delete("a", "ID-1") is True
    store.set("a", "ID-3")
    assert store.delete("a") is True
    assert store.get("a") is None


@over("key", ["", "x" * (MAX_KEY_BYTES + 1), "ü" * (MAX_KEY_BYTES // 2 + 1), "\ud800"])
def test_an_invalid_key_is_refused_before_anything_is_sent(store, key):
    for operation in (store.get, store.delete, store.acquire):
        with pytest.raises(InvalidKey):
            operation(key)
    with pytest.raises(InvalidKey):
        store.resume(key, lambda _: pytest.fail("must not run"))


@over(
    "session_id",
    ["", "-a", "--dangerously-skip-permissions", "a b", "a\n", "ä", "a" * 257, "\ud800", ".a"],
)
def test_an_invalid_session_id_is_refused_and_the_error_names_the_key(store, session_id):
    store.set("the-key", "ID-1")
    lease = store.acquire("the-key")
    for operation in (
        lambda: store.set("the-key", session_id),
        lambda: store.save(lease, session_id),
        lambda: store.delete("the-key", "" if session_id is None else session_id),
    ):
        with pytest.raises(InvalidSessionID) as caught:
            operation()
        assert caught.value.key == "the-key"
        assert caught.value.remedy
    assert store.get("the-key") == "ID-1"
    assert store.release(lease)


def test_an_invalid_value_is_an_error_that_names_the_key(store, raw, namespace):
    raw.set(f"{namespace}:id:{{a}}", "two words", px=60_000)
    with pytest.raises(InvalidSessionID) as caught:
        store.get("a")
    assert caught.value.key == "a"


def test_a_value_of_the_wrong_type_is_an_error_that_names_the_key(store, raw, namespace):
    raw.lpush(f"{namespace}:id:{{a}}", "x")
    raw.pexpire(f"{namespace}:id:{{a}}", 60_000)
    with pytest.raises(CorruptValue) as caught:
        store.get("a")
    assert caught.value.key == "a"
    store.set("a", "ID-1")
    assert store.get("a") == "ID-1"


class TestLease:
    def test_one_worker_holds_a_conversation_and_others_learn_who(self, store):
        store.set("a", "ID-1")
        lease = store.acquire("a")
        assert isinstance(lease, Lease)
        assert lease.session_id == "ID-1"
        held = store.acquire("a")
        assert isinstance(held, Held)
        assert held.holder == lease.token
        assert 0 < held.remaining_ms <= store.settings.lease_ms

    def test_a_repeated_claim_gets_the_same_lease(self, store):
        lease = store.acquire("a")
        assert store.acquire("a", lease.token) == lease

    def test_every_claim_has_its_own_token(self, store):
        first = store.acquire("a")
        store.release(first)
        assert store.acquire("a").token != first.token

    def test_save_keeps_the_id_for_the_max_age_and_releases_the_lease(self, store, raw, namespace):
        lease = store.acquire("a")
        assert store.save(lease, "ID-1") is True
        assert store.get("a") == "ID-1"
        assert raw.pttl(f"{namespace}:id:{{a}}") > DAY_MS - 60_000
        assert not raw.exists(f"{namespace}:lease:{{a}}")

    def test_release_works_once(self, store):
        lease = store.acquire("a")
        assert store.release(lease) is True
        assert store.release(lease) is False
        assert isinstance(store.acquire("a"), Lease)

    def test_reject_deletes_the_refused_id_and_keeps_the_lease(self, store):
        store.set("a", "ID-1")
        lease = store.acquire("a")
        assert store.reject(lease) is True
        assert store.get("a") is None
        assert isinstance(store.acquire("a"), Held)

    def test_reject_leaves_what_a_plain_set_saved_meanwhile(self, store):
        store.set("a", "ID-1")
        lease = store.acquire("a")
        store.set("a", "ID-2")
        assert store.reject(lease) is True
        assert store.get("a") == "ID-2"

    def test_the_lease_key_outlives_the_lease_by_thirty_days(self, store, raw, namespace):
        store.acquire("a")
        left_ms = raw.pttl(f"{namespace}:lease:{{a}}")
        assert LEASE_GRACE_MS < left_ms <= LEASE_GRACE_MS + store.settings.lease_ms

    def test_a_lapsed_lease_that_nobody_took_still_renews_and_saves(self, store, lapse):
        lease = store.acquire("a")
        lapse("a")
        assert store.renew(lease) is True
        assert isinstance(store.acquire("a"), Held)
        lapse("a")
        assert store.save(lease, "ID-1") is True
        assert store.get("a") == "ID-1"

    def test_a_lapsed_lease_that_was_taken_does_nothing(self, store, lapse):
        store.set("a", "ID-1")
        late = store.acquire("a")
        lapse("a")
        successor = store.acquire("a")
        assert isinstance(successor, Lease)
        assert store.renew(late) is False
        assert store.reject(late) is False
        assert store.release(late) is False
        assert store.save(late, "ID-late") is False
        assert store.get("a") == "ID-1"
        assert store.save(successor, "ID-2") is True
        assert store.save(late, "ID-late") is False
        assert store.get("a") == "ID-2"

    def test_a_late_save_after_the_successor_came_and_went(self, store, lapse):
        late = store.acquire("a")
        lapse("a")
        store.release(store.acquire("a"))
        assert store.save(late, "ID-late") is False
        assert store.get("a") is None

    def test_a_late_save_while_the_successor_runs_on_the_same_id(self, store, raw, namespace, lapse):
        store.set("a", "ID-same")
        late = store.acquire("a")
        lapse("a")
        successor = store.acquire("a")
        raw.pexpire(f"{namespace}:id:{{a}}", 60_000)
        assert store.save(late, "ID-same") is False
        assert raw.pttl(f"{namespace}:id:{{a}}") <= 60_000
        assert store.save(successor, "ID-same") is True

    def test_a_late_save_after_the_successor_saved_the_same_id(self, store, raw, namespace, lapse):
        late = store.acquire("a")
        lapse("a")
        assert store.save(store.acquire("a"), "ID-same") is True
        raw.pexpire(f"{namespace}:id:{{a}}", 60_000)
        assert store.save(late, "ID-same") is False
        assert raw.pttl(f"{namespace}:id:{{a}}") <= 60_000  # the successor's value was not overwritten

    def test_a_lease_without_a_ttl_gets_one_and_lapses(self, store, raw, namespace, lapse):
        store.acquire("a")
        raw.persist(f"{namespace}:lease:{{a}}")
        assert isinstance(store.acquire("a"), Held)
        assert raw.pttl(f"{namespace}:lease:{{a}}") > 0
        lapse("a")
        assert isinstance(store.acquire("a"), Lease)

    def test_an_invalid_value_is_nothing_to_resume(self, store, raw, namespace):
        for plant in (
            lambda key: raw.set(key, "no id"),
            lambda key: raw.set(key, "x" * 9000),
            lambda key: raw.lpush(key, 1),
        ):
            raw.delete(f"{namespace}:id:{{a}}")
            plant(f"{namespace}:id:{{a}}")
            raw.pexpire(f"{namespace}:id:{{a}}", 60_000)
            lease = store.acquire("a")
            assert lease.session_id is None
            assert lease.unusable
            store.release(lease)

    def test_a_lease_key_of_the_wrong_type_is_an_error_that_names_the_key(self, store, raw, namespace):
        raw.lpush(f"{namespace}:lease:{{a}}", "x")
        with pytest.raises(CorruptValue) as caught:
            store.acquire("a")
        assert caught.value.key == "a"
        lease = Lease("a", "host:1:2")
        assert not store.save(lease, "ID-1")
        assert not store.renew(lease)
        assert not store.release(lease)


class TestCounter:
    def test_it_counts(self, store, raw, namespace):
        assert store.resume_failures_total() == 0
        assert store.increment_resume_failures() == 1
        assert store.increment_resume_failures() == 2
        assert store.resume_failures_total() == 2
        assert int(raw.get(f"{namespace}:counter:resume_failures_total")) == 2
        assert raw.ttl(f"{namespace}:counter:resume_failures_total") == -1

    @over("value", ["many", "", b"\xff"])
    def test_a_value_that_is_not_an_integer_is_an_error_with_a_remedy(self, store, raw, namespace, value):
        raw.set(f"{namespace}:counter:resume_failures_total", value)
        with pytest.raises(CorruptValue, match="redis-cli SET"):
            store.resume_failures_total()
        with pytest.raises(CorruptValue, match=r"counter .* is not an integer"):
            store.increment_resume_failures()

    def test_a_value_of_the_wrong_type_is_an_error_that_names_the_counter(self, store, raw, namespace):
        raw.lpush(f"{namespace}:counter:resume_failures_total", 1)
        for operation in (store.resume_failures_total, store.increment_resume_failures):
            with pytest.raises(CorruptValue, match=r"counter .* is not an integer"):
                operation()


def test_namespaces_do_not_see_each_other(make_store, raw, namespace):
    mine, other = make_store(), make_store(namespace=f"{namespace}.other")
    mine.set("a", "ID-1")
    lease = other.acquire("a")
    try:
        assert lease.session_id is None
        assert other.get("a") is None
        assert list(other.sessions()) == []
        assert isinstance(mine.acquire("a"), Lease)
    finally:
        other.release(lease)
