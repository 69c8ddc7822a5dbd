"""What an error of redis-py becomes, and whether it is tried again."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest
import redis
from redis import exceptions as redis_errors

from redis_sessions import AsyncSessionStore, SessionStore, SessionStoreError, StoreSettings, StoreUnavailable
from redis_sessions.client.translate import translate
from redis_sessions.errors import AccessDenied, CommandRefused, CorruptValue
from redis_sessions.server import EmbeddedServer
from tests.stores import Blocking


@pytest.mark.parametrize(
    ("error", "kind", "passing", "says"),
    [
        (redis_errors.ConnectionError("Connection closed by server."), StoreUnavailable, True, "can't be reached"),
        (redis_errors.TimeoutError("Timeout reading from h:1"), StoreUnavailable, True, "no answer in time"),
        (redis_errors.InvalidResponse("Protocol error"), StoreUnavailable, True, "not as Redis does"),
        (ConnectionRefusedError(111, "refused"), StoreUnavailable, True, "Connection refused"),
        (socket.gaierror(-2, "unknown"), StoreUnavailable, True, "no such host name"),
        (redis_errors.BusyLoadingError("loading"), StoreUnavailable, True, "LOADING"),
        (redis_errors.ReadOnlyError("You can't write"), StoreUnavailable, True, "READONLY"),
        (redis_errors.ReadOnlyError("Error running script: READONLY You can't"), StoreUnavailable, True, "READONLY"),
        (redis_errors.MasterDownError("MASTERDOWN"), StoreUnavailable, True, "MASTERDOWN"),
        (redis_errors.ClusterDownError("CLUSTERDOWN The cluster is down"), StoreUnavailable, True, "CLUSTERDOWN"),
        (redis_errors.TryAgainError("TRYAGAIN"), StoreUnavailable, True, "TRYAGAIN"),
        (redis_errors.ResponseError("NOREPLICAS Not enough good replicas"), StoreUnavailable, True, "NOREPLICAS"),
        (redis_errors.ResponseError("BUSY Redis is busy running a script"), StoreUnavailable, True, "BUSY"),
        (redis_errors.OutOfMemoryError("command not allowed"), StoreUnavailable, False, "OOM"),
        (redis_errors.ResponseError("MISCONF Errors writing"), StoreUnavailable, False, "MISCONF"),
        (redis_errors.MaxConnectionsError("Too many connections"), StoreUnavailable, True, "are in use"),
        (redis_errors.RedisClusterException("cannot be connected"), StoreUnavailable, True, "can't be reached"),
        (redis_errors.SlotNotCoveredError("Slot 1"), StoreUnavailable, True, "can't be reached"),
        (redis_errors.AuthenticationError("invalid password"), AccessDenied, False, "WRONGPASS"),
        (redis_errors.NoPermissionError("no permissions"), AccessDenied, False, "NOPERM"),
        (redis_errors.ResponseError("WRONGTYPE Operation against"), CorruptValue, False, "is not a string"),
        (redis_errors.ResponseError("ERR unknown command 'GET', with args: s3"), CommandRefused, False, "does not know GET"),
        (redis_errors.ResponseError("ERR unknown command `s3cret`"), CommandRefused, False, "does not know EVALSHA"),
        (redis_errors.ResponseError("ERR Unknown Redis command called from script"), CommandRefused, False, "of a script"),
        (redis_errors.ResponseError("ERR max daily request limit exceeded. Limit: 1"), CommandRefused, False, "its quota"),
        (redis_errors.ResponseError("PROXYERR s3cret"), CommandRefused, False, "refuses EVALSHA (PROXYERR)"),
        (redis_errors.ConnectionError("max number of clients reached"), StoreUnavailable, True, "no connection left"),
        (redis_errors.ResponseError("NOPROTO unsupported protocol"), CommandRefused, False, "does not speak RESP3"),
        (redis_errors.AuthenticationError("Client sent AUTH, but no password is set"), AccessDenied, False, "no password"),
        (redis_errors.ResponseError("ERR unknown command 'CLUSTER'"), StoreUnavailable, False, "is not a cluster"),
        (redis_errors.DataError("Invalid input of type s3"), SessionStoreError, False, "redis-py refused EVALSHA"),
        (RuntimeError("Event loop is closed"), SessionStoreError, False, "event loop"),
        (RuntimeError("Task got Future attached to a different loop"), SessionStoreError, False, "event loop"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_table(error, kind, passing, says):
    refusal = translate(error, "key", "h:1", sent="EVALSHA")
    assert type(refusal.error) is kind
    assert refusal.passing is passing
    assert says in refusal.error.message
    assert "s3" not in str(refusal.error)
    assert refusal.error.remedy
    assert refusal.error.key == "key"


@pytest.mark.parametrize("error", [ValueError("x"), AttributeError("x"), RuntimeError("x"), KeyError("x")])
@pytest.mark.parametrize("cluster", [False, True])
def test_our_own_mistakes_are_not_outages(error, cluster):
    try:
        raise error
    except Exception as raised:  # noqa: BLE001
        assert translate(raised, "key", "h:1", cluster=cluster) is None


class TestAConfusedClusterClient:
    """redis-py lets a raw AttributeError through while a slot has no node."""

    @pytest.fixture
    def deadline_ms(self):
        return 30_000

    @pytest.fixture(params=["sync", "async"])
    def store(self, request, places, namespace, loop, deadline_ms):
        place = places.get("cluster")
        settings = StoreSettings(namespace=namespace, deadline_ms=deadline_ms)
        if request.param == "sync":
            store = SessionStore.from_url(place.url, settings)
        else:
            store = Blocking(AsyncSessionStore.from_url(place.url, settings), loop)
        store.set("a", "ID")
        yield store
        for key in place.raw.scan_iter(f"{namespace}:*"):
            place.raw.delete(key)
        store.close()

    @pytest.fixture
    def confuse(self, store, monkeypatch):
        """Let the client find no node for its next lookups."""
        manager = store.client.nodes_manager
        find, left = type(manager).get_node_from_slot, [0]

        def confused(self, *args, **options):
            left[0] -= 1
            return None if left[0] >= 0 else find(self, *args, **options)

        monkeypatch.setattr(type(manager), "get_node_from_slot", confused)

        def confuse(times: int) -> None:
            left[0] = times

        return confuse

    def test_a_short_confusion_is_retried(self, store, confuse):
        confuse(3)
        assert store.get("a") == "ID"
        confuse(1)
        assert store.peek("a").session_id == "ID"

    @pytest.mark.parametrize("deadline_ms", [500])
    def test_a_long_confusion_is_an_outage(self, store, confuse):
        confuse(1_000_000)
        for name in ("get", "peek", "acquire"):
            with pytest.raises(StoreUnavailable, match="confused by changes of the cluster"):
                getattr(store, name)("a")
        with pytest.raises(StoreUnavailable):
            store.increment_resume_failures()

    def test_errors_of_other_code_pass_through(self, store, monkeypatch):
        client = store.client

        def mistaken(*_: object, **__: object) -> None:
            raise AttributeError

        monkeypatch.setattr(client, "execute_command", mistaken)
        with pytest.raises(AttributeError):
            store.get("a")


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_the_connection_to_a_demoted_primary_is_dropped(flavour, loop, monkeypatch):
    """Its name may by now belong to another server: the connection is dropped, and the next one asks again."""
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as raw:
        settings = StoreSettings(deadline_ms=500)
        if flavour == "sync":
            store = SessionStore.from_url(server.url, settings)
        else:
            store = Blocking(AsyncSessionStore.from_url(server.url, settings), loop)
        store.set("a", "ID")
        raw.replicaof("127.0.0.1", 1)
        for operation in (lambda: store.set("a", "E"), lambda: store.acquire("a"), store.increment_resume_failures):
            with pytest.raises(StoreUnavailable, match="READONLY"):
                operation()
        assert store.get("a") == "ID"
        connections = raw.info("stats")["total_connections_received"]
        with pytest.raises(StoreUnavailable, match="READONLY"):
            store.increment_resume_failures()
        with pytest.raises(StoreUnavailable, match="READONLY"):
            store.increment_resume_failures()
        assert raw.info("stats")["total_connections_received"] == connections + 1
        raw.replicaof("NO", "ONE")
        store.set("a", "E")
        assert store.get("a") == "E"
        assert store.resume_failures_total() == 0
        store.close()


def test_only_loop_errors_among_runtime_errors_are_translated():
    async def other() -> None:
        raise RuntimeError("cannot reuse already awaited coroutine")

    with pytest.raises(RuntimeError) as caught:
        asyncio.run(other())
    assert translate(caught.value, None, "h:1") is None


@pytest.fixture(scope="module")
def closed(binary):
    """A server whose default user has a password."""
    with EmbeddedServer(binary=binary, extra={"requirepass": "s3cret"}) as server:
        yield server.url.removeprefix("redis://").removesuffix("/0")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://:s3cret@{}/99", "has no database of that number"),
        ("redis+cluster://:s3cret@{}", "is not a cluster"),
        # Redis tells anybody that it doesn't know the command, Valkey who has logged in; the password is not for Sentinel.
        ("redis+sentinel://:s3cret@{}/main", "is not a Sentinel|asks for a user and a password"),
        ("redis://{}/0", "asks for a user and a password"),
        ("redis+cluster://{}", "asks for a user and a password"),
        ("redis://:s3cre@{}/0", "refuses this user's password"),
    ],
)
@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_permanent_errors_are_not_retried(closed, loop, kind, url, says):
    store = kind.from_url(url.format(closed), StoreSettings(deadline_ms=100_000))
    store = store if kind is SessionStore else Blocking(store, loop)
    with pytest.raises(StoreUnavailable) as caught:
        store.get("k")
    assert re.search(says, caught.value.message)
    assert caught.value.remedy
    assert "s3cre" not in str(caught.value)
    store.close()
