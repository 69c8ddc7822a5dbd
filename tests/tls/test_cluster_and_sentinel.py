"""TLS to a cluster and behind Sentinel: every connection is made over it, and who trusts another CA is refused."""

from __future__ import annotations

import subprocess

import pytest
import redis

from redis_sessions import StoreUnavailable
from redis_sessions.server import EmbeddedServer
from tests.acl.work import move
from tests.servers import CLUSTER_SETTINGS, Cluster, wait_until
from tests.stores import opened
from tests.tls.ways import KINDS, refused


class TLSCluster(Cluster):
    """Three primaries that speak TLS to clients and to each other, and plainly to this test."""

    def __init__(self, binary, certificates):
        super().__init__(binary)
        own = {"tls-cluster": "yes", "tls-replication": "yes"}
        for node in self.nodes:
            node.extra = CLUSTER_SETTINGS | certificates.settings("server", "yes") | own

    @property
    def startup_nodes(self):
        return [("127.0.0.1", int(node.extra["tls-port"])) for node in self.nodes]


@pytest.fixture(scope="module")
def cluster_url(binary, certificates):
    with TLSCluster(binary, certificates) as cluster:
        yield cluster.url.replace("redis+", "rediss+")


def serves_who_trusts_it(url, certificates, loop, namespace, tmp_path, kind, refusals):
    """Everything goes over TLS there, and who trusts another CA is refused at the first try."""
    with opened(kind, url + certificates.options(), loop, namespace=namespace) as store:
        store.set("a", "ID-1")
        move(store, tmp_path)
    refusals.clear()
    with opened(kind, url + certificates.options(ca="stranger-ca.pem"), loop) as store, refused():
        store.get("a")
    assert len(refusals) == 1


@KINDS
def test_a_cluster(cluster_url, certificates, loop, namespace, tmp_path, kind, refusals):
    serves_who_trusts_it(cluster_url, certificates, loop, namespace, tmp_path, kind, refusals)


@KINDS
def test_a_cluster_that_announces_addresses_and_has_certificates_for_names(binary, certificates, loop, kind):
    one_node = {"cluster-enabled": "yes", "tls-cluster": "yes", "cluster-announce-ip": "127.0.0.1"}
    settings = certificates.settings("localhost", "no") | one_node
    with EmbeddedServer(binary=binary, extra=settings) as server:
        with redis.Redis.from_url(server.url) as raw:
            raw.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
            wait_until(lambda: b"cluster_state:ok" in raw.execute_command("CLUSTER", "INFO"), "the cluster serves")
        url = f"rediss+cluster://localhost:{settings['tls-port']}{certificates.options(client=None)}"
        # At once, since waiting can't help: the deadline is beyond the time limit of the test.
        with opened(kind, url, loop, deadline_ms=600_000) as store, pytest.raises(StoreUnavailable) as caught:
            store.get("k")
    announced = f"127.0.0.1:{settings['tls-port']} can't be reached (TLS failed: its certificate is for another name)"
    assert announced in caught.value.message
    assert "cluster-announce-hostname" in caught.value.remedy


@pytest.fixture(scope="module")
def sentinel_url(serve, binary, certificates, tmp_path_factory):
    """One Sentinel, speaking TLS, that watches one server."""
    primary, directory = serve(), tmp_path_factory.mktemp("sentinel")
    settings = certificates.settings("server", "yes") | {"tls-replication": "yes", "port": "0", "dir": str(directory)}
    lines = [f"{name} {value}" for name, value in settings.items()]
    lines += ["bind 127.0.0.1", f"sentinel monitor main 127.0.0.1 {primary.extra['tls-port']} 1"]
    (directory / "sentinel.conf").write_text("\n".join(lines) + "\n")
    log = directory / "log"
    with log.open("w") as output:
        process = subprocess.Popen([binary, directory / "sentinel.conf", "--sentinel"], stdout=output, stderr=output)
    try:
        wait_until(lambda: "+monitor master main" in log.read_text(), "Sentinel watches")
        yield f"rediss+sentinel://127.0.0.1:{settings['tls-port']}/main"
    finally:
        process.kill()
        process.wait()


@KINDS
def test_behind_sentinel(sentinel_url, certificates, loop, namespace, tmp_path, kind, refusals):
    serves_who_trusts_it(sentinel_url, certificates, loop, namespace, tmp_path, kind, refusals)
