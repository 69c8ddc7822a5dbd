"""Fixtures of the tests of `resume`."""

from __future__ import annotations

import pytest

from redis_sessions import Lease, Record
from redis_sessions.keys import COUNTERS, RECORD_FIELDS, Keys
from tests.resume.stand_in import KEY


@pytest.fixture
def counters(raw, namespace):
    """Three of the counters: failures, resumes, fresh starts."""
    return lambda: tuple(int(raw.get(Keys(namespace).counter(name)) or 0) for name in COUNTERS[:3])


@pytest.fixture
def record(raw, namespace):
    """What the record of the conversation's session says beyond the defaults, without what the server measured."""

    def read():
        found = Record.read(raw.hmget(Keys(namespace).record(KEY), RECORD_FIELDS))
        known = {name: value for name, value in found._asdict().items() if value != Record._field_defaults[name]}
        times = [known.pop(name) for name in ("started_ms", "used_ms") if name in known]
        assert times == sorted(times)
        return known

    return read


@pytest.fixture
def free(store):
    """Whether the conversation is free."""

    def check():
        claim = store.acquire(KEY)
        if isinstance(claim, Lease):
            store.release(claim)
        return isinstance(claim, Lease)

    return check
