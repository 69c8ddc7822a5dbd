"""Clients: those we build are the safe kind; what is risky about one that the caller passes in is said, once."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from unittest import mock

import fakeredis
import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from redis_sessions import AsyncSessionStore, SessionStore, StoreSettings, StoreUnavailable
from redis_sessions.client import callers
from redis_sessions.client.execute import Link
from redis_sessions.client.pool import AsyncPool, Pool

QUIET = MaintNotificationsConfig(enabled=False)
LOUD = MaintNotificationsConfig(enabled="auto")
SAFE = {"maint_notifications_config": QUIET, "retry": redis.retry.Retry(NoBackoff(), 0)}
URLS = ("redis://h", "rediss://h", "unix:///s", "redis+cluster://h,g", "redis+sentinel://h/main", "rediss+sentinel://h/main")


@pytest.fixture(autouse=True)
def _nothing_logged_yet(monkeypatch):
    monkeypatch.setattr(callers, "_warned", set())


@pytest.fixture
def warning_of(caplog):
    """What was logged of a client that was passed in."""

    def warning_of(client):
        caplog.clear()
        (AsyncSessionStore if isinstance(client, redis.asyncio.Redis | redis.asyncio.RedisCluster) else SessionStore)(client)
        assert len(caplog.records) <= 1
        assert all(record.levelno == logging.WARNING for record in caplog.records)
        return caplog.text

    return warning_of


def safe_pool(kind, **options):
    retry = (redis.asyncio if kind is AsyncPool else redis).retry.Retry(NoBackoff(), 0)
    return kind(host="h", maint_notifications_config=QUIET, retry=retry, **options)


class TestACallersClient:
    @pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis])
    def test_all_risks_are_one_warning_logged_once(self, warning_of, kind):
        client = kind(maint_notifications_config=LOUD, protocol=3, socket_timeout=None)
        text = warning_of(client)
        assert "INCR" in text
        assert "maintenance notifications" in text
        assert "no socket_timeout" in text
        assert "SessionStore.from_url" in text
        assert warning_of(client) == ""
        assert "more than 15 s" in warning_of(kind(socket_timeout=60))

    @pytest.mark.parametrize("pool", [Pool, AsyncPool])
    def test_a_safe_client_gets_no_warning(self, warning_of, pool):
        kind = redis.Redis if pool is Pool else redis.asyncio.Redis
        assert warning_of(kind(connection_pool=safe_pool(pool))) == ""
        assert warning_of(kind(connection_pool=safe_pool(pool, decode_responses=True))) == ""

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"socket_timeout": None}, "has no socket_timeout"),
            ({"socket_timeout": 16}, "socket_timeout of more than 15 s"),
            ({"socket_connect_timeout": None}, "has no socket_connect_timeout"),
        ],
    )
    def test_each_risk_alone(self, warning_of, options, says):
        text = warning_of(redis.Redis(connection_pool=safe_pool(Pool, **options)))
        assert says in text
        assert ";" not in text

    def test_the_pool_of_redis_py(self, warning_of):
        text = warning_of(redis.Redis(**SAFE))
        assert "leak connections" in text
        assert ";" not in text

    def test_a_single_connection(self, warning_of, valkey):
        with redis.Redis.from_url(valkey.url, single_connection_client=True) as client:
            assert "single connection" in warning_of(client)
        assert "single connection" not in warning_of(redis.Redis())

    def test_a_single_connection_in_asyncio(self, warning_of):
        assert "single connection" in warning_of(redis.asyncio.Redis(single_connection_client=True))

    def test_a_cluster_client_that_retries(self, warning_of):
        nodes = [redis.asyncio.cluster.ClusterNode("h", 1)]
        assert "INCR" in warning_of(redis.asyncio.RedisCluster(startup_nodes=nodes))

    def test_hiredis_missing(self, warning_of, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "hiredis" else name)
        assert "without hiredis" in warning_of(redis.Redis(connection_pool=safe_pool(Pool)))

    @pytest.mark.parametrize(
        "client",
        [
            fakeredis.FakeRedis(),
            fakeredis.FakeAsyncRedis(),
            fakeredis.FakeStrictRedis(decode_responses=True),
            redis.Redis(connection_pool=redis.ConnectionPool(connection_class=fakeredis.FakeConnection)),
            mock.Mock(),
            mock.MagicMock(),
            mock.Mock(spec=redis.Redis),
            mock.MagicMock(spec=redis.RedisCluster),
            mock.AsyncMock(spec=redis.asyncio.Redis),
        ],
        ids=lambda client: type(client).__name__,
    )
    def test_emulations_and_mocks_get_no_warning(self, warning_of, client):
        assert warning_of(client) == ""

    def test_a_subclass_is_checked(self, warning_of):
        class Mine(redis.Redis):
            pass

        assert "INCR" in warning_of(Mine())

    def test_a_client_without_attributes_breaks_nothing(self, warning_of):
        assert warning_of(object.__new__(redis.Redis)) == ""


def noted(send, sent):
    """The method that sends a command, which adds its arguments to a list."""

    def execute_command(self, *args, **options):
        sent.append(args)
        return send(self, *args, **options)

    return execute_command


class TestOurs:
    @pytest.mark.parametrize("url", URLS)
    def test_our_clients_have_no_risk(self, url, caplog):
        for kind in (SessionStore, AsyncSessionStore):
            client = kind.from_url(url).client
            if not isinstance(client, redis.RedisCluster):  # which would ask for the slots
                callers.warn(client)
        assert caplog.text == ""

    @pytest.mark.parametrize("url", ["redis://h/5", "redis+sentinel://h/main/5", "unix:///s?db=5"])
    @pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
    def test_connecting_sends_no_integer(self, kind, url):
        """A signal handler that raises while it renders one crashes the process: so no HELLO 3, and SELECT takes text."""
        options = kind.from_url(url).client.get_connection_kwargs()
        assert options["db"] == "5"
        assert options["protocol"] == 2

    def test_commands_send_no_integer(self, monkeypatch):
        sent = []
        execute, pack = fakeredis.FakeRedis.execute_command, redis.Connection.pack_commands
        monkeypatch.setattr(fakeredis.FakeRedis, "execute_command", noted(execute, sent))
        monkeypatch.setattr(redis.Connection, "pack_commands", lambda *args: sent.extend(args[1]) or pack(*args))
        store = SessionStore(fakeredis.FakeRedis(), _link=Link())
        store.set("a", "ID-1")
        lease = store.acquire("a")
        assert store.peek("a").session_id == "ID-1"
        assert store.renew(lease)
        assert store.reject(lease)
        assert store.save(lease, "ID-2")
        assert store.delete("a", "ID-2")
        assert {args[0] for args in sent} >= {"SET", "PTTL", "EVALSHA"}
        assert [args for args in sent if not all(isinstance(argument, str | bytes) for argument in args)] == []

    @pytest.mark.parametrize("url", URLS)
    def test_the_settings_reach_the_client(self, url):
        settings = StoreSettings(socket_timeout_ms=300, connect_timeout_ms=400, max_connections=7)
        for kind in (SessionStore, AsyncSessionStore):
            client = kind.from_url(url, settings).client
            if isinstance(client, redis.RedisCluster):
                options = client.options()
            elif isinstance(client, redis.asyncio.RedisCluster):
                options = client.connection_kwargs | {"max_connections": client.connection_kwargs["max_connections"] - 1}
            else:
                assert client.connection_pool.max_connections == 7
                options = client.get_connection_kwargs() | {"max_connections": 7}
            assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.3, 0.4)
            assert options["max_connections"] == 7

    def test_every_cluster_node_has_our_pool(self, places):
        with SessionStore.from_url(places.get("cluster").url, StoreSettings(max_connections=7)) as store:
            store.get("a")
            pools = [node.redis_connection.connection_pool for node in store.client.get_nodes()]
        assert [type(pool) for pool in pools] == [Pool] * 3
        assert [pool.max_connections for pool in pools] == [7] * 3
        assert [pool.connection_kwargs["socket_timeout"] for pool in pools] == [1] * 3

    def test_connecting_sends_nothing_else(self, valkey):
        """No greeting, no name: the first command is the caller's."""
        for kind in (SessionStore, AsyncSessionStore):
            valkey.raw.config_resetstat()
            if kind is SessionStore:
                with kind.from_url(valkey.url) as store:
                    store.get("a")
            else:

                async def main(kind=kind):
                    async with kind.from_url(valkey.url) as store:
                        await store.get("a")

                asyncio.run(main())
            assert set(valkey.raw.info("commandstats")) - {"cmdstat_config|resetstat", "cmdstat_info"} == {"cmdstat_get"}


def test_a_connection_returned_halfway_through_a_call_is_closed(places):
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


def test_connections_may_go_while_others_are_listed():
    """In another thread, or in a signal handler, between any two lines."""
    with SessionStore.from_url("redis://h", StoreSettings(max_connections=100)) as store:
        pool = store.client.connection_pool
        kept, going = [pool._make() for _ in range(10)], [pool._make() for _ in range(50)]

        def trace(*_):
            if going:
                pool._drop(going.pop())
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            pool.update_active_connections_for_reconnect()
        finally:
            sys.settrace(before)
        assert len(going) < 50
        assert all(connection.should_reconnect() for connection in kept)


def test_closing_a_cluster_client_that_never_connected():
    store = SessionStore.from_url("redis+cluster://127.0.0.1:1", StoreSettings(deadline_ms=1))
    with pytest.raises(StoreUnavailable):
        store.get("a")
    store.close()
    assert store.client._manager is None


def test_connections_that_close_late_are_all_closed(places, monkeypatch):
    """redis-py gives a connection as long to close as to connect, and raises at the first that takes longer."""

    async def main(url, settings):
        async with AsyncSessionStore.from_url(url, settings) as store:
            await asyncio.gather(*(store.get(key) for key in "abcdef"))
            monkeypatch.setattr(asyncio.StreamWriter, "wait_closed", lambda _: asyncio.sleep(20))
        monkeypatch.undo()
        await asyncio.sleep(0)  # closes what was to be closed

    for name in ("valkey", "cluster"):
        asyncio.run(main(places.get(name).url, StoreSettings(connect_timeout_ms=200)))
        gc.collect()  # a connection that was left open would warn
