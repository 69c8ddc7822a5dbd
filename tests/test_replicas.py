"""Saves that count only when replicas have them: on a server of each kind with one replica, and on a cluster."""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack, closing
from functools import partial

import fakeredis
import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from redis_sessions import AsyncSessionStore, InvalidSettings, NotReplicated, SessionStore, StoreSettings, Turn
from redis_sessions.operations.acl import acl_lines
from tests.servers import standalone, stopped, wait_until
from tests.stores import Blocking, wait_for_renewal

# How long a replica is waited for is half of this: one that is stopped, and one on a busy machine.
QUICK_MS, PATIENT_MS = 300, 30_000


class Pair:
    """A primary, its replica, and a plain client of each."""

    def __init__(self, binary, stack):
        self.servers = [stack.enter_context(standalone(binary)) for _ in range(2)]
        self.raw, self.replica = [stack.enter_context(redis.Redis.from_url(server.url)) for server in self.servers]
        for client in (self.raw, self.replica):
            client.config_set("repl-diskless-sync-delay", 0)
        self.replica.replicaof("127.0.0.1", self.servers[0].port)
        wait_until(lambda: self.replica.info("replication")["master_link_status"] == "up", "the replica is in sync")

    def behind(self):
        """The replica answers nothing in the block."""
        return stopped(self.servers[1].pid)


@pytest.fixture(scope="module")
def pair(binary):
    with ExitStack() as stack:
        yield Pair(binary, stack)


@pytest.fixture(params=["ours", "callers"])
def stores(pair, request, loop, namespace):
    """Makes stores of both flavors, over our clients or a caller's that decode."""
    with ExitStack() as stack:

        def make(url=pair.servers[0].url, **settings):
            chosen = StoreSettings(**{"namespace": namespace, "replicas": 1, "socket_timeout_ms": PATIENT_MS} | settings)
            if request.param == "ours":
                sync, other = SessionStore.from_url(url, chosen), AsyncSessionStore.from_url(url, chosen)
            else:
                sync = SessionStore(redis.Redis.from_url(url, decode_responses=True), chosen)
                other = AsyncSessionStore(redis.asyncio.Redis.from_url(url, decode_responses=True), chosen)
            stores = [sync, Blocking(other, loop)]
            for store in stores:
                stack.callback(store.close)
            return stores

        yield make


def test_a_save_says_whether_replicas_have_it(pair, stores, caplog):
    for store, quick in zip(stores(), stores(socket_timeout_ms=QUICK_MS), strict=True):
        # The server has forgotten the script: what is said of a script that it didn't run counts for nothing.
        pair.raw.script_flush()
        early = partial(quick.save_early, "three", "ID-2")
        assert store.save(store.acquire("one"), "ID-1")
        store.set("two", "ID-1")
        result = store.resume("three", lambda _: Turn("ID-1"))
        assert (result.saved, result.replicated, result.reason) == (True, True, None)
        assert store.resume("three", lambda _: Turn("ID-1"), lease=False).replicated
        with pair.behind():
            pair.raw.script_flush()
            lease = quick.acquire("one")
            with pytest.raises(NotReplicated, match="after 150 ms 0 replicas have it, not 1") as caught:
                quick.save(lease, "ID-2")
            assert (caught.value.key, caught.value.replicas) == ("one", 0)
            assert not quick.save(lease, "ID-3"), "it is released, so nothing was written and no replica lacks it"
            with pytest.raises(NotReplicated):
                quick.set("two", "ID-2")
            caplog.clear()
            result = quick.resume("three", lambda _, early=early: early() and Turn("ID-2"))
            assert (result.saved, result.replicated) == (True, False)
            assert "0 replicas have it" in result.reason
            assert [entry.levelno for entry in caplog.records if "replicas have it" in entry.message] == [
                logging.WARNING
            ] * 2
            assert quick.resume("three", lambda _: Turn(None)).replicated is False
        assert [store.get(key) for key in ("one", "two", "three")] == ["ID-2"] * 3


@pytest.mark.parametrize("binary", ["valkey"], indirect=True)
@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_the_timeout_of_a_callers_client_counts_if_it_is_shorter(pair, loop, namespace, kind):
    """Half of the settings' would be longer than such a client waits for the reply."""
    timeout_ms = 6_000
    module = redis if kind is SessionStore else redis.asyncio
    client = module.Redis.from_url(pair.servers[0].url, socket_timeout=timeout_ms / 1000)
    store = kind(client, StoreSettings(namespace=namespace, replicas=1, socket_timeout_ms=10 * timeout_ms))
    store = store if kind is SessionStore else Blocking(store, loop)
    with closing(store), pair.behind(), pytest.raises(NotReplicated, match="after 3000 ms 0 replicas have it, not 1"):
        store.set("one", "ID-1")


def test_a_save_that_too_few_replicas_have_ends_the_lease_of_its_block(pair, stores, namespace, caplog):
    """It is saved and released, so no renewal finds it taken over."""
    for store in stores(socket_timeout_ms=QUICK_MS, lease_ms=90):
        with pair.behind(), store.lease("clock"), store.lease("one") as lease:
            with pytest.raises(NotReplicated):
                store.save(lease, "ID-1")
            for _ in range(2):
                wait_for_renewal(pair.raw, namespace, "clock")
            assert store.release(store.acquire("one"))
    assert "taken over" not in caplog.text


def test_a_save_whose_reply_was_lost_is_waited_for(pair, namespace):
    """WAIT is about the last write of its connection: with none, on a new one, it takes every replica for up to date."""
    first = SessionStore.from_url(pair.servers[0].url, StoreSettings(namespace=namespace))
    again = redis.Redis.from_url(pair.servers[0].url, retry=Retry(NoBackoff(), 1))  # so each save may be a second one
    with first, SessionStore(again, StoreSettings(namespace=namespace, replicas=1, socket_timeout_ms=QUICK_MS)) as second:
        lease = first.acquire("one")
        with pair.behind():
            first.save(lease, "ID-1")
            with pytest.raises(NotReplicated, match="0 replicas have it"):
                second.save(lease, "ID-1")


def test_a_turn_still_takes_two_round_trips(pair, namespace, monkeypatch):
    settings = StoreSettings(namespace=namespace, replicas=1, socket_timeout_ms=PATIENT_MS)
    with SessionStore.from_url(pair.servers[0].url, settings) as store:
        assert store.resume("one", lambda _: Turn("ID-1")).replicated, "the scripts are loaded now"
        sent, send = [], redis.Connection.send_packed_command
        monkeypatch.setattr(
            redis.Connection, "send_packed_command", lambda *args, **options: sent.append(1) or send(*args, **options)
        )
        assert store.resume("one", lambda _: Turn("ID-1")).replicated
        assert len(sent) == 2


def test_a_user_may_wait_if_its_grants_say_so(pair, stores, namespace):
    worker = {"worker": hashlib.sha256(b"s3cret").hexdigest()}
    for granted in (False, True):
        lines = acl_lines(namespace, password_hashes=worker, read_only_keys=False, replicas=granted)
        pair.raw.execute_command("ACL SETUSER", *next(line for line in lines if "user worker" in line).split()[1:])
        for store in stores(pair.servers[0].url.replace("://", "://worker:s3cret@")):
            if granted:
                store.set("one", "ID-2")
                continue
            with pytest.raises(NotReplicated, match="does not grant this user the command wait") as caught:
                store.set("one", "ID-1")
            assert "redis-sessions acl" in caught.value.remedy
            assert store.get("one") == "ID-1"


def test_fakeredis_has_no_replicas():
    for kind, client in ((SessionStore, fakeredis.FakeRedis()), (AsyncSessionStore, fakeredis.FakeAsyncRedis())):
        with pytest.raises(InvalidSettings, match="fakeredis has no replicas"):
            kind(client, StoreSettings(replicas=1))
