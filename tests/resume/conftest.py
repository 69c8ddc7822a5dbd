"""Fixtures of the tests of `resume`."""

from __future__ import annotations

import pytest

from redis_sessions import Lease
from redis_sessions.keys import COUNTERS, Keys
from tests.resume.stand_in import KEY


@pytest.fixture
def counters(raw, namespace):
    """Three of the counters: failures, resumes, fresh starts."""
    return lambda: tuple(int(raw.get(Keys(namespace).counter(name)) or 0) for name in COUNTERS[:3])


@pytest.fixture
def record(raw, namespace):
    """The record of the conversation's session, by field; what the server measured is left out."""

    def read():
        fields = {name.decode(): value.decode() for name, value in raw.hgetall(Keys(namespace).record(KEY)).items()}
        return {name: value for name, value in fields.items() if name not in ("started_ms", "used_ms")}

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
