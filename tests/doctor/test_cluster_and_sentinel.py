"""The doctor on a cluster, and behind Sentinel."""

from __future__ import annotations

import socket
import subprocess

import pytest

from redis_sessions import AsyncSessionStore, SessionStore, StoreSettings, StoreUnavailable
from redis_sessions.doctor.connection import sentinel as quorum_check
from redis_sessions.errors import CommandRefused
from redis_sessions.server import EmbeddedServer
from tests.doctor.support import about, finding_of, found, healthy, troubles
from tests.servers import find_redis_server, wait_until
from tests.stores import Blocking

pytestmark = pytest.mark.plants_immortal_keys


def test_a_cluster(places, namespace):
    """Its nodes have no append-only file, and allow the default user."""
    place = places.get("cluster")
    with place.sync(StoreSettings(namespace=namespace)) as store:
        expected = {"append-only": "broken", "rights": "warning"}
        assert troubles(store.doctor()) == expected
        assert found(store.doctor(), "cluster").found == "every slot is served"
        one, other, *_ = place.raw.get_primaries()
        place.raw.execute_command("CONFIG SET", "appendonly", "yes", target_nodes=one)
        other_id = place.raw.execute_command("CLUSTER MYID", target_nodes=other)
        slot = next(slot for slot in range(16_384) if place.raw.nodes_manager.get_node_from_slot(slot) == one)
        place.raw.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", other_id, target_nodes=one)
        try:
            diagnosis = store.doctor()
            expected |= {"cluster": "warning", "no-ttl": "unknown", "max-age": "unknown"}
            expected |= {"values": "unknown", "names": "unknown", "leases": "unknown"}
            assert troubles(diagnosis) == expected
            assert found(diagnosis, "append-only").found.endswith("(on 2 of 3 primaries)")
            assert found(diagnosis, "cluster").found.endswith("(on 1 of 3 primaries)")
        finally:
            place.raw.execute_command("CLUSTER SETSLOT", slot, "STABLE", target_nodes=one)
            place.raw.execute_command("CONFIG SET", "appendonly", "no", target_nodes=one)


def test_a_cluster_with_an_unserved_slot(tmp_path):
    with healthy(tmp_path / "data", cluster_enabled="yes") as (store, raw):
        raw.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
        wait_until(lambda: b"cluster_state:ok" in raw.execute_command("CLUSTER", "INFO"), "the cluster serves")
        url = f"redis+cluster://sessions:s3cret%2Fx@127.0.0.1:{raw.get_connection_kwargs()['port']}"
        raw.acl_setuser("sessions", enabled=True, commands=["+cluster|slots", "+cluster|nodes", "+command", "+asking"])
        with SessionStore.from_url(url, StoreSettings(deadline_ms=1_200)) as clustered:
            assert troubles(clustered.doctor()) == {}
            raw.execute_command("CLUSTER DELSLOTS", 16_383)
            diagnosis = clustered.doctor()
            keys = ("commands", "no-ttl", "max-age", "values", "names", "leases", "counters")
            assert troubles(diagnosis) == {"cluster": "broken"} | dict.fromkeys(keys, "unknown")
            assert found(diagnosis, "cluster").found == "state fail, 16,383 of 16,384 slots served"
        raw.execute_command("CLUSTER ADDSLOTS", 16_383)
        wait_until(lambda: b"cluster_state:ok" in raw.execute_command("CLUSTER", "INFO"), "the cluster serves")
        unseen = dict.fromkeys(("no-ttl", "max-age", "values", "names", "leases"), "unknown")
        assert troubles(store.doctor()) == {"cluster": "broken"} | unseen
        assert "redis+cluster://" in found(store.doctor(), "cluster").remedy


def test_sentinels_without_a_quorum():
    away, denied = StoreUnavailable("away"), CommandRefused("h refuses a command (NOQUORUM)")
    cases = (([True, True], "ok"), ([True, away], "warning"), ([away, denied], "broken"), ([away, away], "unknown"))
    for quorums, status in cases:
        assert finding_of(quorum_check, about(quorums=quorums)).status == status


@pytest.fixture
def sentinel(tmp_path):
    """A Sentinel that monitors one server under two names: alone it is a quorum for the first, not for the second."""
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no redis-server on the PATH")
    with EmbeddedServer() as server, socket.socket() as taken:
        # Nobody takes the port of a socket that is bound; only one that listens is in the way of another.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        watched = [f"sentinel monitor {name} 127.0.0.1 {server.port} {votes}" for name, votes in (("enough", 1), ("few", 2))]
        lines = [f"port {taken.getsockname()[1]}", "bind 127.0.0.1", f"dir {tmp_path}", *watched]
        (tmp_path / "sentinel.conf").write_text("\n".join(lines) + "\n")
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([binary, tmp_path / "sentinel.conf", "--sentinel"], stdout=log, stderr=log)
        try:
            wait_until(lambda: (tmp_path / "log").read_text().count("+monitor master") == 2, "Sentinel watches")
            yield f"127.0.0.1:{taken.getsockname()[1]}"
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_behind_sentinel(sentinel, kind, loop):
    def look(hosts, service):
        store = kind.from_url(f"redis+sentinel://{hosts}/{service}")
        store = store if kind is SessionStore else Blocking(store, loop)
        try:
            return found(store.doctor(), "sentinel")
        finally:
            store.close()

    assert look(sentinel, "enough").found == "1 of 1 see a quorum"
    assert look(sentinel, "few").status == "broken"
    assert look(f"{sentinel},127.0.0.1:1", "enough").found == "1 of 2 can't be reached"
