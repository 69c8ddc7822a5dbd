"""The max age that the workers of a namespace agree on: written by the first save, compared by every store's first save."""

from __future__ import annotations

import pytest
import redis

from redis_sessions import Lease, SessionStore, StoreSettings, Turn
from redis_sessions.keys import Keys
from redis_sessions.operations.conversation import Operations
from redis_sessions.settings import DAY_MS
from tests.resend.losses import PATIENT, LosingClient

HOUR_MS = DAY_MS // 24

SAVES = {
    "set": lambda store: store.set("a", "ID-1"),
    "save": lambda store: store.save(store.acquire("a"), "ID-1"),
    "resume": lambda store: store.resume("a", lambda _: Turn("ID-1")),
    "resume, no lease": lambda store: store.resume("a", lambda _: Turn("ID-1"), lease=False),
}


def warnings(caplog):
    found = [record.getMessage() for record in caplog.records if "max age" in record.getMessage()]
    caplog.clear()
    return found


@pytest.mark.everywhere
@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_the_first_save_writes_it_and_another_store_compares_it_once(make_store, raw, namespace, caplog, save):
    first, other, same = make_store(), make_store(session_max_age_ms=HOUR_MS), make_store()
    first.get("a")
    assert isinstance(first.acquire("b"), Lease)
    assert not raw.exists(Keys(namespace).settings())
    for store in (first, same, first):
        save(store)
    assert raw.hgetall(Keys(namespace).settings()) == {b"max_age_ms": b"%d" % DAY_MS}
    assert raw.ttl(Keys(namespace).settings()) == -1
    assert warnings(caplog) == []
    save(other)
    [warning] = warnings(caplog)
    assert all(part in warning for part in (namespace, "is 1h,", "namespace 24h", "retime"))
    save(other)
    assert warnings(caplog) == []
    other.retime(HOUR_MS)
    save(make_store(session_max_age_ms=HOUR_MS))
    assert warnings(caplog) == []
    save(make_store())
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("plant", [lambda raw, key: raw.hset(key, "max_age_ms", "soon"), lambda raw, key: raw.lpush(key, 1)])
def test_what_is_no_max_age_fails_no_save(make_store, raw, namespace, caplog, plant):
    plant(raw, Keys(namespace).settings())
    store = make_store()
    store.set("a", "ID-1")
    assert store.get("a") == "ID-1"
    assert len(warnings(caplog)) == 1


class TestTroubleWithItAlone:
    @pytest.fixture
    def client(self, valkey):
        client = LosingClient(redis.Redis.from_url(valkey.url))
        yield client
        client._client.close()

    @pytest.fixture
    def store(self, client, namespace):
        return SessionStore(client, StoreSettings(namespace=namespace), _link=PATIENT)

    def test_an_outage_delays_one_save_and_fails_none(self, store, client, valkey, namespace, caplog, monkeypatch):
        clock = [1_000.0]
        monkeypatch.setattr("redis_sessions.operations.conversation.time.monotonic", lambda: clock[0])
        store.release(store.acquire("a"))
        store.save(store.acquire("b"), "ID-0")  # so that the scripts are loaded
        store._ops._compare_at_s = 0
        valkey.raw.delete(Keys(namespace).settings())
        client.losses = [None, None, "before", None]
        result = store.resume("a", lambda _: Turn("ID-1"))
        assert (result.saved, result.reason, client.losses) == (True, None, [None]), "it is sent once"
        assert len(warnings(caplog)) == 1
        assert store.counters()["fresh_starts_total"] == 1
        store.set("a", "ID-1")
        assert not valkey.raw.exists(Keys(namespace).settings()), "not again at once, as each time may delay a save"
        clock[0] += 61
        store.set("a", "ID-1")
        assert valkey.raw.hgetall(Keys(namespace).settings()) == {b"max_age_ms": b"%d" % DAY_MS}
        valkey.raw.delete(*valkey.raw.scan_iter(f"{namespace}:*"))

    def test_a_user_that_may_not_see_it(self, places, namespace, caplog):
        place = places.get("valkey-acl")
        place.set_users(namespace)
        place.raw.execute_command("ACL SETUSER", f"worker.{namespace}", "-hget")
        with SessionStore.from_url(place.user_url("worker", namespace), StoreSettings(namespace=namespace)) as store:
            for _ in range(2):
                assert store.resume("a", lambda _: Turn("ID-1")).saved
        assert len(warnings(caplog)) == 1
        place.raw.delete(*place.raw.scan_iter(f"{namespace}:*"))


def test_the_doctor_goes_by_it(make_store, raw, namespace):
    writer, reader = make_store(session_max_age_ms=30 * DAY_MS), make_store()
    writer.set("a", "ID-1")

    def said(store):
        [finding] = [finding for finding in store.doctor().findings if finding.check == "max-age"]
        return finding.status.value, finding.found

    assert said(reader) == ("ok", "no session has more than 30d left")
    wrong = ("warning", "more than 1h left: 1 session; the workers' max age is 30d")
    assert said(make_store(session_max_age_ms=HOUR_MS)) == wrong
    raw.hset(Keys(namespace).settings(), "max_age_ms", HOUR_MS)
    assert said(reader) == ("warning", "more than 1h left: 1 session")
    raw.delete(Keys(namespace).settings())
    assert said(reader) == ("warning", "more than 24h left: 1 session")


@pytest.mark.parametrize("place", ["valkey", "cluster"], indirect=True)
@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_a_store_that_has_neither_records_nor_a_max_age(make_store, raw, namespace, tmp_path, count):
    """As the version before wrote it: everything is read, and gets both as it is used."""
    store, keys = make_store(max_turns=1, max_lifetime_ms=1, max_context_tokens=1), Keys(namespace)
    with raw.pipeline(transaction=False) as pipeline:
        for number in range(count):
            pipeline.set(keys.session_id(f"chat:{number}"), f"ID-{number}", px=DAY_MS - 1_000 - number)
        pipeline.execute()
    ids = {f"chat:{number}": f"ID-{number}" for number in range(count)}
    rows = {row.key: row for row in store.sessions()}
    assert {key: row.session_id for key, row in rows.items()} == ids
    assert all(1_000 <= row.idle_ms < 1_000 + count + 60_000 for row in rows.values())
    report = store.report()
    assert (report.live, report.no_ttl, report.over_max_age, report.invalid) == (count, 0, 0, 0)
    assert store.live_session_ids() == frozenset(ids.values())
    assert store.export(tmp_path / "sessions.json").exported == count
    assert store.retime(12 * HOUR_MS, dry_run=True).shortened == count
    assert not raw.exists(keys.settings())
    session_id, expires_in_ms, record = store.peek("chat:0")
    assert (session_id, record, expires_in_ms <= DAY_MS) == ("ID-0", None, True)
    result = store.resume("chat:0", Turn)
    assert (result.how, result.previous, result.saved) == ("resumed", "ID-0", True)
    assert (store.peek("chat:0").record.turns, raw.exists(keys.settings())) == (1, 1)
    assert store.retime(12 * HOUR_MS).shortened == count
    raw.delete(keys.settings())
    assert list(raw.scan_iter(f"{namespace}:record:*")) == [keys.record("chat:0")]


def test_what_a_store_may_learn_of_it(valkey, namespace):
    with valkey.sync(StoreSettings(namespace=namespace, session_max_age_ms=7)) as store:
        read = Operations(store.settings).max_age_ms
        assert store._run(read()) is None
        store.set("a", "ID-1")
        assert store._run(read()) == 7
        for garbage in ("", "0", "-1", "1e3", "9" * 19, b"\xff"):
            valkey.raw.hset(Keys(namespace).settings(), "max_age_ms", garbage)
            assert store._run(read()) is None
        valkey.raw.set(Keys(namespace).settings(), 1)
        assert store._run(read()) is None
        valkey.raw.delete(Keys(namespace).settings())
