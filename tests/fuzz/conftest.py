"""Fixtures of the fuzz tests."""

from __future__ import annotations

import pytest

from redis_sessions import SessionStore, StoreSettings
from redis_sessions.server import EmbeddedServer


@pytest.fixture(scope="session")
def server():
    """A server of their own: they flush it."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="session")
def store(server):
    with SessionStore.from_url(server.url, StoreSettings(namespace="ns")) as store:
        yield store
