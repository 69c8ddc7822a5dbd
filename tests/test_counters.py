"""The counters: read together; a corrupt one is named."""

from __future__ import annotations

import pytest

from redis_sessions import CorruptValue, Turn
from redis_sessions.keys import COUNTERS, FRESH_STARTS, RESUME_FAILURES, RESUMES


@pytest.mark.everywhere
def test_the_counters(store):
    assert store.counters() == dict.fromkeys(COUNTERS, 0)
    store.increment_resume_failures()
    store.resume("a", lambda _: Turn("E", None))
    store.resume("a", lambda _: Turn("E", None))
    assert store.counters() == dict.fromkeys(COUNTERS, 0) | dict.fromkeys((RESUME_FAILURES, RESUMES, FRESH_STARTS), 1)


@pytest.fixture(params=["string", "list"])
def corrupt(request, raw, namespace):
    key = f"{namespace}:counter:resume_failures_total"
    raw.set(key, "many") if request.param == "string" else raw.lpush(key, "1")
    return key


@pytest.mark.everywhere
def test_a_corrupt_counter_is_named(store, corrupt):
    for read in (store.resume_failures_total, store.increment_resume_failures):
        with pytest.raises(CorruptValue, match=corrupt) as caught:
            read()
        assert caught.value.remedy == f"redis-cli SET {corrupt} 0"


@pytest.mark.usefixtures("corrupt")
def test_a_corrupt_counter_does_not_hide_the_others(store):
    store.resume("a", lambda _: Turn("E", None))
    expected = dict.fromkeys(COUNTERS, 0) | {RESUME_FAILURES: None, FRESH_STARTS: 1}
    assert store.counters() == expected
    report = store.report()
    assert (report.live, report.counters) == (1, expected)
