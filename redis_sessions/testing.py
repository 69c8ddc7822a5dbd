"""Stores on fakeredis, for the tests of whoever uses this package (`pip install 'redis-sessions[testing]'`).

fakeredis speaks Redis inside this process, scripts and expiry included; with `time-machine` a test can let sessions age.
"""

from __future__ import annotations

import importlib

from redis_sessions.errors import MissingExtra
from redis_sessions.settings import StoreSettings
from redis_sessions.store import AsyncSessionStore, SessionStore

try:
    importlib.import_module("lupa")  # without it fakeredis is there, and knows no scripts
    from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer
except ImportError:
    raise MissingExtra("fake stores need fakeredis[lua]", remedy="pip install 'redis-sessions[testing]'") from None

__all__ = ["fake_async_store", "fake_store"]


def fake_store(settings: StoreSettings | None = None, *, server: FakeServer | None = None) -> SessionStore:
    """A SessionStore on fakeredis, inside this process.

    Args:
        settings: how the store behaves; StoreSettings() unless told.
        server: a `fakeredis.FakeServer()` that several stores share; one of its own unless told. Its
            `connected = False` is an outage.

    Raises TypeError for settings that are no StoreSettings.
    """
    return SessionStore(FakeRedis(server=server or FakeServer()), settings)


def fake_async_store(settings: StoreSettings | None = None, *, server: FakeServer | None = None) -> AsyncSessionStore:
    """Same as fake_store, for asyncio. The two may share a server. Raises TypeError likewise."""
    return AsyncSessionStore(FakeAsyncRedis(server=server or FakeServer()), settings)
