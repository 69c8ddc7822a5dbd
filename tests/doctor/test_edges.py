"""The doctor where servers differ: who gets in by version and by unix socket, and numbers that are none."""

from __future__ import annotations

import pytest

from redis_sessions import AsyncSessionStore, SessionStore, StoreSettings, StoreUnavailable
from redis_sessions.doctor.connection import login, place_of
from redis_sessions.doctor.server import NODE_CHECKS, Node, of_nodes
from redis_sessions.errors import SessionStoreError
from redis_sessions.keys import Keys
from redis_sessions.server import EmbeddedServer
from tests.doctor.looking import found
from tests.servers import Cluster, find_redis_server
from tests.stores import Blocking

BINARIES = [
    None,
    pytest.param(find_redis_server(), marks=pytest.mark.skipif(not find_redis_server(), reason="no redis-server")),
]
OPEN_TO_ALL = {"flags": ["on", "nopass"]}
REDIS_6, REDIS_7, VALKEY = (
    {"redis_version": "6.2.14"},
    {"redis_version": "7.0.15"},
    {"redis_version": "6.9.9", "valkey_version": "8.1.1"},
)


@pytest.mark.parametrize(
    ("info", "bind", "protected", "status"),
    [
        # Tried by hand from another address: Redis 6.2 minds protected mode only where no address is bound.
        (REDIS_6, "", "yes", "ok"),
        (REDIS_6, "", "no", "broken"),
        (REDIS_6, "0.0.0.0", "yes", "broken"),
        (REDIS_6, "127.0.0.1 192.0.2.7", "yes", "broken"),
        (REDIS_6, "127.0.0.1 -::1", "no", "ok"),
        (REDIS_7, "* -::*", "yes", "ok"),
        (REDIS_7, "0.0.0.0", "yes", "ok"),
        (REDIS_7, "0.0.0.0", "no", "broken"),
        (REDIS_7, "", "no", "ok"),
        (VALKEY, "0.0.0.0", "yes", "ok"),
        (VALKEY, "0.0.0.0", "no", "broken"),
        # Nothing has to be known of who listens on loopback only.
        (SessionStoreError("unseen"), "127.0.0.1", "no", "ok"),
    ],
)
def test_who_gets_in_without_a_password(info, bind, protected, status):
    node = Node(info, {"bind": bind, "protected-mode": protected})
    assert login(OPEN_TO_ALL, "127.0.0.1:6379", node)[0] == status


def test_who_gets_in_is_unknown_where_the_version_is():
    node = Node(SessionStoreError("unseen"), {"bind": "0.0.0.0", "protected-mode": "yes"})
    with pytest.raises(SessionStoreError, match="unseen"):
        login(OPEN_TO_ALL, "127.0.0.1:6379", node)


@pytest.mark.parametrize("binary", BINARIES, ids=["valkey", "redis"])
def test_a_unix_socket_is_on_this_machine(binary, tmp_path):
    server = EmbeddedServer(directory=tmp_path / "d", socket=tmp_path / "a socket", binary=binary)
    with server, SessionStore.from_url(server.url) as store:
        diagnosis = store.doctor()
    assert {check: found(diagnosis, check).status for check in ("login", "tls")} == {"login": "ok", "tls": "ok"}


@pytest.mark.parametrize("address", ["/run/s:0", "[/run/s:0]:0", "run/s:0", "[/run/a"])
def test_an_address_of_a_unix_socket(address):
    assert place_of(address) == "here"


@pytest.mark.parametrize("version", ["", "unstable"])
def test_a_version_without_a_number_is_unknown(version):
    [server, *_] = of_nodes([Node({"redis_version": version}, {})])
    assert (server.check, server.status) == ("server", "unknown")


def test_what_is_no_number_is_unknown():
    """Servers that are like Redis tell what they like."""
    words = ("maxmemory", "used_memory", "aof_enabled", "connected_slaves", "cluster_enabled")
    node = Node(dict.fromkeys(words, "some") | {"maxmemory_policy": "noeviction"}, {"min-replicas-to-write": "x"})
    statuses = {finding.check: finding.status for finding in of_nodes([node])}
    assert {*statuses.values()} == {"unknown"}
    assert [finding.status for finding in of_nodes([Node({}, {}, {})]) if finding.check == "cluster"] == ["unknown"]


def test_the_remedy_for_a_small_limit_is_no_lifting_of_it():
    _, look = NODE_CHECKS["memory"]
    info = {"maxmemory": 300_000, "used_memory": 1, "maxmemory_policy": "volatile-ttl", "evicted_keys": 4}
    assert look(Node(info, {}))[2] == "redis-cli CONFIG SET maxmemory 1mb"


@pytest.mark.parametrize("value", [b"7\n", b"1_000", b" 7", b"+7", b"007", b"", b"7.0", b"9" * 18 + b"99", b"1" * 5_000])
def test_a_counter_that_can_not_be_counted_on(valkey, namespace, value):
    """Python takes some of these for integers. The server does not, and refuses the next INCR."""
    with valkey.sync(StoreSettings(namespace=namespace)) as store:
        redis_key = Keys(namespace).counter("resume_failures_total")
        for good in (b"0", b"-3", b"41"):
            valkey.raw.set(redis_key, good)
            assert found(store.doctor(), "counters").status == "ok"
            store.increment_resume_failures()
        valkey.raw.set(redis_key, value)
        try:
            with pytest.raises(SessionStoreError):
                store.increment_resume_failures()
            assert found(store.doctor(), "counters").status == "broken"
        finally:
            valkey.raw.delete(redis_key)


@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_a_cluster_of_which_a_primary_is_away(kind, loop):
    """That is when it is wanted: what can be seen is told, and what can't is unknown."""
    with Cluster() as cluster:
        cluster.nodes[2].kill()
        store = kind.from_url(cluster.url, StoreSettings(deadline_ms=1_200))
        store = store if kind is SessionStore else Blocking(store, loop)
        try:
            diagnosis = store.doctor()
            assert found(diagnosis, "cluster").status == "broken"
            assert found(diagnosis, "cluster").found.startswith(f"127.0.0.1:{cluster.nodes[2].port} can't be reached")
            unseen = {finding.check for finding in diagnosis.findings if finding.status == "unknown"}
            assert unseen >= {"server", "role", "memory", "no-ttl", "leases", "counters"}
            assert not unseen & {"cluster", "login", "rights", "tls", "round-trip", "clock", "client", "agent"}
            for node in cluster.nodes:
                node.kill()
            with pytest.raises(StoreUnavailable):
                store.doctor()
        finally:
            store.close()


@pytest.mark.parametrize(
    ("cluster", "serves"),
    [
        (None, True),
        ({"cluster_state": "ok", "cluster_slots_ok": "16384"}, True),
        # With cluster-require-full-coverage off the rest is served all the same.
        ({"cluster_state": "ok", "cluster_slots_ok": "16383"}, False),
        ({"cluster_state": "fail", "cluster_slots_ok": "16384"}, False),
        (SessionStoreError("unseen"), True),
    ],
)
def test_whether_every_key_can_be_asked_for(cluster, serves):
    assert Node({}, {}, cluster).serves is serves
