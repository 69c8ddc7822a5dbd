"""Stores on fakeredis, for the tests of whoever uses this package (`pip install 'redis-sessions[testing]'`).

fakeredis speaks Redis inside this process, scripts and expiry included; with `time-machine` a test can let sessions age.
"""

from __future__ import annotations

from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer

from redis_sessions.async_store import AsyncSessionStore
from redis_sessions.settings import StoreSettings
from redis_sessions.store import SessionStore


def fake_store(settings: StoreSettings | None = None, *, server: FakeServer | None = None) -> SessionStore:
    """A SessionStore on a fakeredis server: its own, or one that several stores share.

    `server.connected = False` is an outage.
    """
    return SessionStore(FakeRedis(server=server or FakeServer()), settings)


def fake_async_store(settings: StoreSettings | None = None, *, server: FakeServer | None = None) -> AsyncSessionStore:
    """Same as fake_store, for asyncio."""
    return AsyncSessionStore(FakeAsyncRedis(server=server or FakeServer()), settings)
