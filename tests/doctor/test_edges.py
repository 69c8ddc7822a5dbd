"""The doctor where servers differ: logins by version and unix socket, and replies that are not numbers."""

from __future__ import annotations

import pytest

from redis_sessions import AsyncSessionStore, SessionStore, StoreSettings, StoreUnavailable
from redis_sessions.doctor import server as checks
from redis_sessions.doctor.connection import login, place_of
from redis_sessions.errors import SessionStoreError
from redis_sessions.keys import Keys
from redis_sessions.server import EmbeddedServer
from tests.doctor.support import KEYS, about, finding_of, found, replies
from tests.servers import Cluster, find_redis_server
from tests.stores import Blocking

BINARIES = [
    None,
    pytest.param(find_redis_server(), marks=pytest.mark.skipif(not find_redis_server(), reason="no redis-server")),
]
OPEN_TO_ALL = {"flags": ["on", "nopass"], "commands": "+@all", "keys": "~*"}
REDIS_6, REDIS_7, VALKEY = (
    {"redis_version": "6.2.14"},
    {"redis_version": "7.0.15"},
    {"redis_version": "6.9.9", "valkey_version": "8.1.1"},
)


@pytest.mark.parametrize(
    ("info", "bind", "protected", "status"),
    [
        # Tried by hand from another address: Redis 6.2 respects protected mode only where no address is bound.
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
        # On loopback only, the version doesn't matter.
        (SessionStoreError("unseen"), "127.0.0.1", "no", "ok"),
    ],
)
def test_login_without_a_password(info, bind, protected, status):
    assert login_from_here(info, bind, protected).status == status


def test_login_is_unknown_if_the_version_is():
    finding = login_from_here(SessionStoreError("unseen"), "0.0.0.0", "yes")
    assert (finding.status, finding.found) == ("unknown", "unseen")


def login_from_here(info, bind, protected):
    server = replies(info, **{"bind": bind, "port": "6379", "protected-mode": protected})
    server.answers[("CONFIG", "GET", "tls-port")] = {}  # built without TLS
    server.answers |= {("ACL", "GETUSER", "default"): OPEN_TO_ALL, ("CLIENT", "INFO"): "id=1 laddr=127.0.0.1:6379"}
    return finding_of(login, about(server))


@pytest.mark.parametrize("binary", BINARIES, ids=["valkey", "redis"])
def test_a_unix_socket_is_on_this_machine(binary, tmp_path):
    server = EmbeddedServer(directory=tmp_path / "d", socket=tmp_path / "a socket", binary=binary)
    with server, SessionStore.from_url(server.url) as store:
        diagnosis = store.doctor()
    assert {check: found(diagnosis, check).status for check in ("login", "tls")} == {"login": "ok", "tls": "ok"}


@pytest.mark.parametrize("address", ["/run/s:0", "[/run/s:0]:0", "run/s:0", "[/run/a"])
def test_addresses_of_unix_sockets(address):
    assert place_of(address) == "here"


@pytest.mark.parametrize("version", ["", "unstable"])
def test_a_version_without_a_number_is_unknown(version):
    assert finding_of(checks.version, replies({"redis_version": version})).status == "unknown"


def test_replies_that_are_not_numbers_are_unknown():
    """Servers that imitate Redis return any text."""
    words = ("maxmemory", "used_memory", "aof_enabled", "connected_slaves", "cluster_enabled")
    server = replies(dict.fromkeys(words, "some") | {"maxmemory_policy": "noeviction"}, **{"min-replicas-to-write": "x"})
    assert {finding_of(check, server).status for check in checks.CHECKS} == {"unknown"}
    clustered = replies(handle="a primary")
    clustered.answers |= {("CLUSTER", "INFO"): b"", ("CLUSTER", "NODES"): b""}
    assert finding_of(checks.cluster, clustered).status == "unknown"


def test_the_fix_of_a_small_limit_does_not_remove_it():
    info = {"maxmemory": 300_000, "used_memory": 1, "maxmemory_policy": "volatile-ttl", "evicted_keys": 4}
    assert finding_of(checks.memory, replies(info)).remedy == "redis-cli CONFIG SET maxmemory 1mb"


@pytest.mark.parametrize("value", [b"7\n", b"1_000", b" 7", b"+7", b"007", b"", b"7.0", b"9" * 18 + b"99", b"1" * 5_000])
def test_counters_that_can_not_be_incremented(valkey, namespace, value):
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
def test_a_cluster_with_an_unreachable_primary(kind, loop):
    """What can be seen is reported, and what can't is unknown."""
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
        (b"cluster_state:ok\r\ncluster_slots_ok:16384\r\n", True),
        # With cluster-require-full-coverage off the other slots are still served.
        (b"cluster_state:ok\r\ncluster_slots_ok:16383\r\n", False),
        (b"cluster_state:fail\r\ncluster_slots_ok:16384\r\n", False),
        (SessionStoreError("unseen"), True),
    ],
)
def test_whether_every_key_is_served(cluster, serves):
    server = checks.Server(KEYS, None if cluster is None else "a primary", {("CLUSTER", "INFO"): cluster})
    with pytest.raises(StopIteration) as done:
        next(server.serves())
    assert done.value.value is serves
