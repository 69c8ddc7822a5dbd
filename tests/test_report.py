"""The report: a scan that deletes nothing and that no invalid key can stop."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager

import pytest
import redis
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from redis_sessions import AsyncSessionStore, SessionStore, StoreSettings, Turn
from redis_sessions.client import execute
from redis_sessions.keys import COUNTERS, Keys, is_session_id
from redis_sessions.operations.report import MAX_EXAMPLES, ReportFold
from redis_sessions.operations.scan import Page
from redis_sessions.settings import DAY_MS
from tests.servers import standalone, stopped
from tests.stores import Blocking

pytestmark = pytest.mark.plants_immortal_keys


def plant_poison(raw, namespace):
    raw.lpush(f"{namespace}:id:{{a-list}}", "x")
    raw.hset(f"{namespace}:id:{{a-hash}}", "f", "v")
    raw.set(f"{namespace}:id:{{words}}", "two words")
    raw.set(f"{namespace}:id:{{flag}}", "--resume")
    raw.set(f"{namespace}:id:{{empty}}", "")
    raw.set(f"{namespace}:id:{{binary}}", b"\xff\xfe")
    raw.set(f"{namespace}:id:{{huge}}", "x" * 100_000)
    raw.set(f"{namespace}:id:{{a%zz}}", "fine-id")
    raw.set(f"{namespace}:id:{{%41}}", "fine-id")
    raw.set(f"{namespace}:id:".encode() + b"{\xff}", "fine-id")
    return 10


def test_an_empty_store(store):
    report = store.report()
    assert (report.live, report.no_ttl, report.over_max_age, report.invalid) == (0, 0, 0, 0)
    assert report.soonest_expiry_ms is None
    assert report.invalid_examples == ()
    assert not report.approximate
    assert report.scan_ms >= 0
    assert report.counters == dict.fromkeys(COUNTERS, 0)


@pytest.mark.everywhere
def test_it_counts_sessions_and_lists_invalid_keys(store, raw, namespace):
    keys = Keys(namespace)
    for n in range(30):
        store.set(f"fresh{n}", "ID-1")
    store.set("idle-2h", "ID-1")
    raw.pexpire(keys.session_id("idle-2h"), DAY_MS - 2 * 3_600_000)
    store.set("soon", "ID-1")
    raw.pexpire(keys.session_id("soon"), 600_000)
    store.set("immortal", "ID-1")
    raw.persist(keys.session_id("immortal"))
    store.set("older-max-age", "ID-1")
    raw.pexpire(keys.session_id("older-max-age"), DAY_MS * 2)
    store.increment_resume_failures()
    store.acquire("leased")
    poison = plant_poison(raw, namespace)

    report = store.report()
    assert report.live == 34
    assert report.no_ttl == 1 + poison
    assert report.over_max_age == 1
    assert report.invalid == poison
    assert len(report.invalid_examples) == poison
    assert {example.reason for example in report.invalid_examples} == {
        "wrong type",
        "no valid session ID",
        "name outside the key scheme",
    }
    assert 0 < report.soonest_expiry_ms <= 600_000
    histogram = {bucket.up_to_ms: bucket.count for bucket in report.idle_histogram}
    assert histogram[60_000] == 30
    assert histogram[3 * 3_600_000] == 1
    assert histogram[DAY_MS] == 1
    assert sum(histogram.values()) == 32
    assert report.counters["resume_failures_total"] == 1
    assert not report.approximate

    assert store.report().live == 34  # nothing was deleted
    assert sorted(raw.scan_iter(f"{namespace}:id:*")).__len__() == 34 + poison
    assert len(list(store.sessions())) == 34


def test_the_first_twenty_invalid_keys_are_named(store, raw, namespace):
    for n in range(MAX_EXAMPLES + 5):
        raw.set(f"{namespace}:id:{{bad{n}}}", "two words")
    report = store.report()
    assert report.invalid == MAX_EXAMPLES + 5
    assert len(report.invalid_examples) == MAX_EXAMPLES


def test_many_pages_and_progress(make_store):
    store = make_store(scan_count=10)
    for n in range(200):
        store.set(f"key{n}", f"ID-{n}")
    heard = []
    assert store.report(progress=lambda done, about: heard.append((done, about))).live == 200
    assert len(heard) > 3
    assert all(done <= about for done, about in heard)
    assert heard[-1][0] == heard[-1][1] >= 200
    assert store.live_session_ids() == {f"ID-{n}" for n in range(200)}
    assert {row.key for row in store.sessions()} == {f"key{n}" for n in range(200)}


def test_sessions_have_idle_and_expiry_times(store, raw, namespace):
    keys = Keys(namespace)
    for key in ("fresh", "immortal", "over"):
        store.set(key, "ID-1")
    raw.persist(keys.session_id("immortal"))
    raw.pexpire(keys.session_id("over"), DAY_MS * 2)
    rows = {row.key: row for row in store.sessions()}
    assert 0 <= rows["fresh"].idle_ms < 60_000
    assert rows["fresh"].expires_in_ms + rows["fresh"].idle_ms == DAY_MS
    assert (rows["immortal"].idle_ms, rows["immortal"].expires_in_ms) == (None, None)
    assert rows["over"].idle_ms is None
    assert rows["over"].expires_in_ms > DAY_MS


def test_keys_without_braces_are_counted_and_named(store, raw, namespace):
    store.set("a", "ID-1")
    outside = [f"{namespace}:id:{name}" for name in ("noBraces", "{open", "{a}:b", "\x1b")]
    for redis_key in [*outside, f"{namespace}:idle:x", f"x{namespace}:id:y"]:
        raw.set(redis_key, "ID-2", ex=60)
    report = store.report()
    assert (report.live, report.invalid, report.near_scheme) == (1, 0, 4)
    assert {*report.near_examples} == {*outside[:3], f"{namespace}:id:\\x1b"}
    names = next(finding for finding in store.doctor().findings if finding.check == "names")
    assert (names.status, names.found.split(",")[0]) == ("warning", "4 keys without braces")
    assert f"{namespace}:id:{{…}}" in names.remedy
    raw.delete(f"x{namespace}:id:y")


@pytest.mark.everywhere
def test_rows_have_the_records_of_their_sessions(make_store, raw, namespace):
    keys, store = Keys(namespace), make_store()
    for key in ("saved", "another's", "broken"):
        store.resume(key, lambda _: Turn("ID-1", context_tokens=900), judge=lambda _: None)
    store.set("bare", "ID-1")
    store.set("another's", "ID-2")
    raw.delete(keys.record("broken"))
    raw.set(keys.record("broken"), "no hash", ex=60)
    raw.pexpire(keys.session_id("saved"), DAY_MS // 2)  # as if the worker had another max age
    rows = {row.key: row for row in store.sessions()}
    assert [row.key for row in rows.values() if row.record] == ["saved"]
    saved = rows["saved"]
    assert (saved.record.session_id, saved.record.turns, saved.record.context_tokens) == ("ID-1", 1, 900)
    assert 0 <= saved.idle_ms < 60_000
    assert {row.record for row in store.sessions(records=False)} == {None}
    assert rows.keys() == {"saved", "another's", "broken", "bare"}


@pytest.mark.everywhere
def test_idle_times_count_from_the_last_save_of_any_kind(store, raw, namespace):
    """A save without a lease gives the ID a new TTL and leaves its record; retime shortens TTLs without any use."""
    keys, hour_ms = Keys(namespace), DAY_MS // 24

    def idle_hours():
        """By their rows, by their rows without records, and by peek."""
        rows, bare = list(store.sessions()), list(store.sessions(records=False))
        now_ms = rows[0].last_used_at_ms + rows[0].idle_ms
        peeks = ((key, now_ms - store.peek(key).record.used_ms) for key in ("unused", "set", "turn"))
        known = [{row.key: row.idle_ms for row in rows}, {row.key: row.idle_ms for row in bare}, dict(peeks)]
        return [{key: round(idle_ms / hour_ms, 1) for key, idle_ms in sorted(each.items())} for each in known]

    for key in ("unused", "set", "turn"):
        store.resume(key, lambda _: Turn("ID-1"))
        raw.hincrby(keys.record(key), "s", -2 * hour_ms)  # as if it was that long ago
        for redis_key in (keys.session_id(key), keys.record(key)):
            raw.pexpire(redis_key, DAY_MS - 2 * hour_ms)
    assert idle_hours() == [{"set": 2.0, "turn": 2.0, "unused": 2.0}] * 3
    store.set("set", "ID-1")
    store.resume("turn", Turn, lease=False)
    used = {"set": 0.0, "turn": 0.0, "unused": 2.0}
    assert idle_hours() == [used] * 3
    assert store.retime(6 * hour_ms).shortened == 3
    assert idle_hours() == [used, dict.fromkeys(used, 0.0), used]
    for key in used:  # a script's commands may read the clock one by one (Redis 6.2), so the record may live 1 ms longer
        assert abs(raw.pttl(keys.session_id(key)) - raw.pttl(keys.record(key))) < 60_000 < raw.pttl(keys.record(key))
        assert raw.pttl(keys.record(key)) <= 6 * hour_ms


def test_without_a_max_age_that_of_the_namespace_counts(make_store, raw, namespace):
    hour = make_store(session_max_age_ms=DAY_MS // 24)
    hour.set("a", "ID-1")
    raw.pexpire(Keys(namespace).session_id("a"), DAY_MS // 48)
    for store, idle_ms in ((make_store(), DAY_MS // 48), (make_store(session_max_age_ms=DAY_MS), DAY_MS * 47 // 48)):
        [row] = store.sessions()
        assert idle_ms <= row.idle_ms < idle_ms + 60_000
        assert sum(b.count for b in store.report().idle_histogram if b.up_to_ms < idle_ms) == 0


@pytest.mark.everywhere
def test_leases_that_are_held(make_store, lapse, raw, namespace):
    store = make_store(scan_count=10)
    held = {key: store.acquire(key).token for key in ("a", "b {%}", "日本")}
    store.release(store.acquire("released"))
    store.acquire("lapsed")
    lapse("lapsed")
    raw.set(f"{namespace}:lease:outside", "x")
    raw.lpush(Keys(namespace).lease("list"), "x")
    rows = list(store.leases())
    assert {row.key: row.holder for row in rows} == held
    assert all(0 < row.remaining_ms <= 30_000 for row in rows)


def test_an_empty_namespace_names_those_near_it(store, raw, namespace):
    assert namespace not in store.near_namespaces()
    others = [f"{namespace}-{number}" for number in (1, 2)]
    for number, other in enumerate(others):
        redis_key = Keys(other).lease("a") if number else Keys(other).session_id("a")
        raw.set(redis_key, "ID-1", ex=60)
    assert {*others} == {*store.near_namespaces()[:2]}
    store.set("a", "ID-1")
    assert store.near_namespaces() == ()


def test_live_session_ids_are_those_of_the_keys(store):
    assert store.live_session_ids() == frozenset()
    store.set("a", "ID-1")
    store.set("b", "ID-1")
    store.set("c", "ID-2")
    store.acquire("running")
    assert store.live_session_ids() == {"ID-1", "ID-2"}


def test_a_scan_that_another_process_finishes_is_approximate():
    """As after a restart or a failover: the cursor means nothing to the new process."""
    with standalone() as server, SessionStore.from_url(server.url, StoreSettings(scan_count=10)) as store:
        for number in range(200):
            store.set(f"key{number}", "ID-1")
        restarts = []

        def restart(*_: int) -> None:
            if not restarts:
                restarts.append(server.kill())
                server.start()

        assert store.report(restart).approximate
        assert not store.report().approximate
        for number in range(200):
            store.set(f"key{number}", "ID-1")
        rows = store.sessions()
        next(rows)
        server.kill()
        server.start()
        assert list(rows) is not None
        assert rows.exact is False


@contextmanager
def many_pages(client, flavor, loop):
    """A server with 200 sessions and a store that scans it in small pages, by a client of its own or of the caller's."""
    settings = StoreSettings(scan_count=10)
    kind, redis_kind = (SessionStore, redis.Redis) if flavor == "sync" else (AsyncSessionStore, redis.asyncio.Redis)
    with standalone() as server:
        if client == "own":
            given = kind.from_url(server.url, settings)
        else:
            given = kind(redis_kind.from_url(server.url, socket_timeout=5), settings)
        with closing(given if flavor == "sync" else Blocking(given, loop)) as store:
            for number in range(200):
                store.set(f"key{number}", f"ID-{number}")
            yield server, store


class Stop(BaseException):
    """Raised as by a signal handler."""


@pytest.mark.parametrize("flavor", ["sync", "async"])
@pytest.mark.parametrize("client", ["own", "caller's"])
def test_a_page_is_counted_while_the_server_works_on_the_next_one(loop, monkeypatch, client, flavor):
    """Here it works on it until then: it stands still when it is asked."""
    counted, add_page = [], ReportFold.add_page

    def add(fold, page):
        counted.append(page)
        standstill.close()
        add_page(fold, page)

    def stand_still(*_):
        if not counted:
            standstill.enter_context(stopped(server.pid))

    monkeypatch.setattr(ReportFold, "add_page", add)
    with many_pages(client, flavor, loop) as (server, store), ExitStack() as standstill:
        assert store.report(stand_still).live == 200


@pytest.mark.parametrize("flavor", ["sync", "async"])
@pytest.mark.parametrize("client", ["own", "caller's"])
@pytest.mark.parametrize("error", [Stop("now"), ConnectionError("of something else"), ValueError("of a page")], ids=repr)
def test_an_error_while_a_page_is_counted(loop, monkeypatch, error, client, flavor):
    """It is no outage, nothing is read twice for it, and the next call gets the answer to its own question."""
    counted = []

    def refuse_the_third(_, page):
        counted.append(page)
        if len(counted) == 3:
            raise error

    with many_pages(client, flavor, loop) as (_, store):
        with monkeypatch.context() as patch:
            patch.setattr(ReportFold, "add_page", refuse_the_third)
            with pytest.raises(type(error)) as raised:
                store.report()
        assert raised.value is error
        assert len(counted) == 3
        assert store.get("key7") == "ID-7"
        assert store.report().live == 200


rows = st.lists(
    st.tuples(
        st.one_of(st.text(min_size=1, max_size=20).map(lambda key: Keys("ns").session_id(key)), st.binary(max_size=20)),
        st.integers(min_value=-2, max_value=3 * DAY_MS),
        st.one_of(
            st.none(),
            st.binary(max_size=20),
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True).map(str.encode),
        ),
    ),
    max_size=50,
)


tidy = st.lists(
    st.tuples(
        st.from_regex(r"[a-z]{1,9}", fullmatch=True).map(lambda key: Keys("ns").session_id(key)),
        st.one_of(st.integers(-2, 3), st.integers(-2, 3 * DAY_MS), st.sampled_from([DAY_MS, DAY_MS + 1, DAY_MS - 60_000])),
        st.just(b"ID-1"),
    ),
    max_size=50,
)


@given(st.lists(st.one_of(rows, tidy), max_size=3))
def test_pages_are_counted_exactly(pages):
    fold = ReportFold(StoreSettings(namespace="ns"))
    for page in pages:
        fold.add_page(Page(*map(list, zip(*page, strict=True)), 0) if page else Page([], [], [], 0))
    report = fold.finish({}, approximate=False)
    alive = [row for page in pages for row in page if row[1] >= -1]
    sessions = [pttl for key, pttl, value in alive if Keys("ns").conversation(key) and value and is_session_id(value)]
    assert (report.live, report.invalid) == (len(sessions), len(alive) - len(sessions))
    assert report.no_ttl == sum(pttl == -1 for _, pttl, _ in alive)
    assert report.over_max_age == sum(pttl > DAY_MS for _, pttl, _ in alive)
    assert report.soonest_expiry_ms == min((pttl for pttl in sessions if pttl >= 0), default=None)
    idle_ms = [DAY_MS - pttl for pttl in sessions if 0 <= pttl <= DAY_MS]
    above = -1
    for bucket in report.idle_histogram:
        assert bucket.count == sum(above < idle <= bucket.up_to_ms for idle in idle_ms)
        above = bucket.up_to_ms


@given(rows)
def test_every_row_is_counted_once_whatever_it_is(rows):
    fold = ReportFold(StoreSettings(namespace="ns"))
    for row in rows:
        fold.add_page(Page(*([cell] for cell in row), 0))
    report = fold.finish({}, approximate=False)
    alive = [row for row in rows if row[1] >= -1]
    assert report.live + report.invalid == len(alive)
    assert report.no_ttl == sum(pttl == -1 for _, pttl, _ in alive)
    assert report.over_max_age == sum(pttl > DAY_MS for _, pttl, _ in alive)
    assert sum(bucket.count for bucket in report.idle_histogram) <= report.live
    assert all(example.key.isprintable() for example in report.invalid_examples)
    report.model_dump_json()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_a_cluster_by_a_client_of_the_callers(places, loop, namespace, protocol, kind):
    """Whatever it decodes and however it reads replies, and with keys of every sort in between."""
    options = {"protocol": protocol, "decode_responses": True}
    port = int(places.get("cluster").url.split(",")[0].rpartition(":")[2])
    settings = StoreSettings(namespace=namespace)
    if kind is SessionStore:
        store = SessionStore(redis.RedisCluster("127.0.0.1", port, **options), settings)
    else:
        store = Blocking(AsyncSessionStore(redis.asyncio.RedisCluster("127.0.0.1", port, **options), settings), loop)
    raw = places.get("cluster").raw
    for number in range(30):
        store.set(f"key{number}", f"ID-{number}")
    store.resume("key0", lambda _: Turn("ID-0"))
    poison = plant_poison(raw, namespace)
    report = store.report(records=True)
    assert (report.live, report.invalid, report.approximate) == (30, poison, False)
    assert sum(bucket.count for bucket in report.records.turns) == 1
    assert store.live_session_ids() == {f"ID-{number}" for number in range(30)}
    assert store.retime(60_000).shortened == 30
    store.close()
    for key in raw.scan_iter(f"{namespace}:*"):
        raw.delete(key)


def test_a_cluster_is_scanned_where_no_thread_can_be_started(places, namespace, monkeypatch):
    def start_none(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(execute, "start_new_thread", start_none)
    keys = [f"k{number}" for number in range(12)]
    with SessionStore.from_url(places.get("cluster").url, StoreSettings(namespace=namespace)) as store:
        for key in keys:
            store.set(key, "E")
        found = store.report()
        assert (found.live, found.approximate) == (12, False)
        assert all(store.delete(key) for key in keys)
