"""The fake stores for users' own tests."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import time_machine
from fakeredis import FakeServer

from redis_sessions import StoreSettings, StoreUnavailable, Turn
from redis_sessions.testing import fake_async_store, fake_store


def test_a_session_ages():
    with time_machine.travel("2026-11-22", tick=False) as traveller:
        store = fake_store(StoreSettings(session_max_age_ms=60_000))
        store.set("a", "ID-1")
        traveller.shift(timedelta(seconds=60))
        assert store.get("a") == "ID-1"
        traveller.shift(timedelta(milliseconds=1))
        assert store.get("a") is None


def test_stores_share_a_server_and_an_outage():
    server = FakeServer()
    one, other = fake_store(server=server), fake_async_store(server=server)
    one.set("a", "ID-1")
    assert asyncio.run(other.get("a")) == "ID-1"
    assert fake_store().get("a") is None
    server.connected = False
    with pytest.raises(StoreUnavailable):
        one.get("a")
    assert one.resume("a", lambda _: Turn("E", "ran")).value == "ran"
