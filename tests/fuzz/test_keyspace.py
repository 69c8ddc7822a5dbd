"""Keys in Redis: only the intended ones are written, and what a scan finds is classified correctly."""

from __future__ import annotations

from hypothesis import strategies as st

from redis_sessions import InvalidKey, StoreSettings
from redis_sessions.keys import Keys, check_session_id
from redis_sessions.legacy.transfer import page_rows
from redis_sessions.operations.conversation import Held
from redis_sessions.operations.report import ReportFold
from redis_sessions.operations.scan import Page, session_rows
from tests.fuzz.texts import amounts, any_text, fuzz, keys, pieces


@amounts(50, 2_500)
def test_nothing_but_the_keys_that_were_meant(store, amount):
    """Ten texts per input. An injected command, glob or Lua would leave traces; neighboring keys are not seen or changed."""
    raw, scheme = store.client, store._ops.keys

    def check(texts):
        raw.flushdb()
        neighbors = {
            f"{near}:id:{{{number}}}".encode() for number, near in enumerate(("nS", "ns2", "n", "xns", "ns:id", "n?"))
        }
        neighbors |= {b"ns:idx:{a}", b"ns:id:a", b"ns:id:{%41}", b"ns", b"*", b"ns:id:{a}b"}
        raw.mset(dict.fromkeys(neighbors, "ID-other"))
        saved, leased = {}, {}
        for number, text in enumerate(texts):
            try:
                store.set(text, f"ID-{number}")
                saved[text] = f"ID-{number}"
                leased[text] = store.acquire(text, f"token {number}")
            except InvalidKey:
                continue
            assert leased[text].session_id == saved[text]
            assert leased[text].token == f"token {number}"
            assert isinstance(store.acquire(text, f"token {number}!"), Held)
            assert store.renew(leased[text])
        assert {row.key: row.session_id for row in store.sessions()} == saved
        report = store.report()
        assert (report.live, report.invalid) == (len(saved), 1)  # `ns:id:{%41}`, which has the prefix and an invalid name
        meant = {name(key) for key in saved for name in (scheme.session_id, scheme.lease)}
        # Which max age the namespace has is written by the first save of a store.
        assert set(raw.keys()) - {scheme.settings()} == neighbors | meant
        for text, lease in leased.items():
            assert store.get(text) == saved[text]
            assert not store.delete(text, "ID-none")
            assert store.reject(lease)
            assert store.release(lease)
        assert set(raw.keys()) - {scheme.settings()} == neighbors
        assert set(raw.mget(neighbors)) == {b"ID-other"}

    fuzz(amount, st.lists(any_text, max_size=10, unique=True), check)


@amounts(150, 6_000)
def test_a_page_is_read_like_its_keys_one_by_one(amount):
    chosen = StoreSettings(namespace="ns")
    scheme = Keys("ns")

    def check(rows):
        page = Page(*map(list, zip(*rows, strict=True)), 10**13)
        sessions = list(session_rows(chosen, page))
        alone = [each for row in rows for each in session_rows(chosen, Page(*([cell] for cell in row), 10**13))]
        assert sessions == alone
        exported = [(row.key, row.session_id, row.last_used_at_ms, row.idle_ms is None) for row in sessions]
        assert page_rows(scheme, chosen.session_max_age_ms, page) == exported
        for session in sessions:
            assert (scheme.session_id(session.key), check_session_id("k", session.session_id)) in {
                (redis_key, value) for redis_key, _, value in rows
            }
        together, one_by_one = ReportFold(chosen), ReportFold(chosen)
        together.add_page(page)
        for row in rows:
            one_by_one.add_page(Page(*([cell] for cell in row), 10**13))
        first, second = (fold.finish({}, approximate=False).model_dump() for fold in (together, one_by_one))
        assert first | {"scan_ms": 0} == second | {"scan_ms": 0}

    names = st.one_of(st.binary(max_size=9), pieces.map(str.encode), st.just(b"a")).map(lambda raw: b"ns:id:{" + raw + b"}")
    values = st.none() | st.binary(max_size=9) | pieces.map(str.encode) | st.sampled_from([b"ID-1", b"ID\n", b"ID ID", b""])
    rows = st.tuples(names | st.binary(max_size=9), st.integers(-2, 10**9), values)
    usual = st.tuples(keys.map(scheme.session_id), st.integers(-2, 10**9), st.sampled_from([b"ID-1", b"ID-2"]))
    fuzz(amount, st.lists(rows, min_size=1, max_size=5) | st.lists(usual | rows, min_size=1, max_size=5), check)
