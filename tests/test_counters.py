"""The counters: read together, and what is none of them is named."""

from __future__ import annotations

import pytest

from redis_sessions import CorruptValue, Turn


def test_the_counters(store):
    assert store.counters() == {"resume_failures_total": 0, "resumes_total": 0, "fresh_starts_total": 0}
    store.increment_resume_failures()
    store.resume("a", lambda _: Turn("E", None))
    store.resume("a", lambda _: Turn("E", None))
    assert store.counters() == {"resume_failures_total": 1, "resumes_total": 1, "fresh_starts_total": 1}


@pytest.mark.parametrize("type_", ["string", "list"])
def test_a_counter_that_is_none_is_named(store, raw, namespace, type_):
    key = f"{namespace}:counter:resumes_total"
    raw.set(key, "many") if type_ == "string" else raw.lpush(key, "1")
    with pytest.raises(CorruptValue, match="counter"):
        store.counters()
