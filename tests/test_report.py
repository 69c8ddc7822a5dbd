"""The report: a scan that deletes nothing and that no invalid key can stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_sessions import InexactScan, StoreSettings
from redis_sessions.keys import COUNTERS, Keys, is_session_id
from redis_sessions.operations.report import MAX_EXAMPLES, ReportFold
from redis_sessions.operations.scan import Page
from redis_sessions.settings import DAY_MS

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


def test_it_counts_sessions_and_lists_invalid_keys(store, raw, namespace):
    keys = Keys(namespace)
    for n in range(30):
        store.set(f"fresh{n}", "ID-1")
    store.set("idle-2h", "ID-1")
    raw.pexpire(keys.session_id("idle-2h"), DAY_MS - 2 * 3_600_000)
    store.set("soon", "ID-1")
    raw.pexpire(keys.session_id("soon"), 9_000)
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
    assert 0 < report.soonest_expiry_ms <= 9_000
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


def test_live_session_ids_are_those_of_the_keys(store):
    assert store.live_session_ids() == frozenset()
    store.set("a", "ID-1")
    store.set("b", "ID-1")
    store.set("c", "ID-2")
    store.acquire("running")
    assert store.live_session_ids() == {"ID-1", "ID-2"}


def test_a_scan_that_another_process_finishes_is_approximate(valkey, namespace, monkeypatch):
    """As after a restart or a failover: the cursor means nothing to the new process."""
    with valkey.sync(StoreSettings(namespace=namespace)) as store:
        answers = iter(["one", "two"] * 2)
        send = store.client.execute_command

        def execute_command(*args, **options):
            reply = send(*args, **options)
            return reply | {"run_id": next(answers)} if args[0] == "INFO" else reply

        monkeypatch.setattr(store.client, "execute_command", execute_command)
        assert store.report().approximate
        with pytest.raises(InexactScan, match="delete no transcript"):
            store.live_session_ids()


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
