"""Fixtures of the tests of `resume`."""

from __future__ import annotations

import pytest

from redis_sessions import Lease
from redis_sessions.keys import COUNTERS, Keys
from tests.resume.stand_in import KEY


@pytest.fixture
def counters(raw, namespace):
    """The three counters: failures, resumes, fresh starts."""
    return lambda: tuple(int(raw.get(Keys(namespace).counter(name)) or 0) for name in COUNTERS)


@pytest.fixture
def free(store):
    """Whether the conversation is free."""

    def check():
        claim = store.acquire(KEY)
        if isinstance(claim, Lease):
            store.release(claim)
        return isinstance(claim, Lease)

    return check
