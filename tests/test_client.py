"""Clients: what is risky about one that the caller passes in is said, once; one of our own is not complained of."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from redis_sessions import AsyncSessionStore, SessionStore
from redis_sessions import client as clients


@pytest.fixture(autouse=True)
def _nothing_told_yet(monkeypatch):
    monkeypatch.setattr(clients, "_told", set())


@pytest.mark.parametrize("kind", [(redis.Redis, SessionStore), (redis.asyncio.Redis, AsyncSessionStore)])
def test_a_client_of_the_callers_is_complained_of_once(kind, caplog):
    client, store = kind
    for _ in range(3):
        store(client(maint_notifications_config=MaintNotificationsConfig(enabled="auto"), protocol=3))
    assert len(caplog.records) == 2
    assert "INCR" in caplog.text
    assert "maintenance notifications" in caplog.text


def test_one_that_is_safe_is_not(caplog):
    quiet = MaintNotificationsConfig(enabled=False)
    SessionStore(redis.Redis(retry=redis.retry.Retry(NoBackoff(), 0), maint_notifications_config=quiet))
    for url in ("redis://h", "unix:///s", "redis+cluster://h", "redis+sentinel://h/main"):
        SessionStore.from_url(url)
        AsyncSessionStore.from_url(url)
    assert caplog.text == ""
