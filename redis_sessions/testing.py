"""Stores on fakeredis, for tests of programs that use this package (`pip install 'redis-sessions[testing]'`).

fakeredis is Redis inside this process, scripts and expiry included; with `time-machine` a test can let sessions age.
"""

from __future__ import annotations

import importlib

from redis_sessions.errors import MissingExtra
from redis_sessions.settings import StoreSettings
from redis_sessions.store import AsyncSessionStore, SessionStore

try:
    importlib.import_module("lupa")  # without it fakeredis can be imported, but can't run scripts
    from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer
except ImportError:
    raise MissingExtra("fake stores need fakeredis[lua]", remedy="pip install 'redis-sessions[testing]'") from None

__all__ = ["fake_async_store", "fake_store"]


def fake_store(settings: StoreSettings | None = None, *, server: FakeServer | None = None) -> SessionStore:
    """A SessionStore on fakeredis, inside this process.

    Args:
        settings: how the store behaves; default: StoreSettings().
        server: a `fakeredis.FakeServer()` that several stores share; default: a new one. Its `connected = False` is an
            outage.

    Raises TypeError if the settings are not a StoreSettings, InvalidSettings if they ask for replicas.
    """
    return SessionStore(FakeRedis(server=server or FakeServer()), settings)


def fake_async_store(settings: StoreSettings | None = None, *, server: FakeServer | None = None) -> AsyncSessionStore:
    """Same as fake_store, for asyncio. The two may share a server. Raises TypeError and InvalidSettings."""
    return AsyncSessionStore(FakeAsyncRedis(server=server or FakeServer()), settings)
