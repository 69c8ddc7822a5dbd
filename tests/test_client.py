"""Clients: what is risky about one that the caller passes in is said, once; one of our own is not complained of."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from redis_sessions import AsyncSessionStore, SessionStore, StoreSettings, StoreUnavailable
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


def test_every_pool_of_ours_closes_a_connection_that_is_given_back_half_way(places):
    """On a cluster each node has a pool, made by redis-py; its own would hand the unread reply to the next one who asks."""
    for name in ("valkey", "cluster"):
        with SessionStore.from_url(places.get(name).url, StoreSettings(max_connections=7)) as store:
            store.get("a")
            nodes = store.client.get_nodes() if name == "cluster" else [store.client]
            pools = [getattr(node, "redis_connection", node).connection_pool for node in nodes]
            for pool in pools:
                assert pool.max_connections == 7
                connection = pool.get_connection()
                try:
                    raise ZeroDivisionError
                except ZeroDivisionError:
                    pool.release(connection)
                assert not connection.is_connected


def test_closing_a_cluster_that_could_not_be_asked_connects_to_nothing():
    store = SessionStore.from_url("redis+cluster://127.0.0.1:1", StoreSettings(deadline_ms=1))
    with pytest.raises(StoreUnavailable):
        store.get("a")
    store.close()
    assert "nodes_manager" not in vars(store.client)
