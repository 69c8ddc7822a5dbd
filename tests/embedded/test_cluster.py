"""The cluster that other tests use: it starts completely, takes a node back, and leaves nothing."""

import pytest
from redis.cluster import ClusterNode, RedisCluster

from redis_sessions.errors import ServerError
from tests.servers import PRIMARIES, Cluster, client_of, exists, wait_until


def test_cluster(binary):
    with Cluster(binary, replicas=1) as cluster:
        pids = [node.pid for node in cluster.nodes]
        assert len(pids) == PRIMARIES * 2
        assert cluster.url.startswith("redis+cluster://127.0.0.1:")
        with RedisCluster(startup_nodes=[ClusterNode(*node) for node in cluster.startup_nodes]) as client:
            for number in range(100):
                client.set(f"key {number}", number)
            assert client.dbsize(target_nodes=RedisCluster.PRIMARIES) == 100
            assert len(client.get_replicas()) == PRIMARIES
    assert not any(exists(pid) for pid in pids)


@pytest.mark.parametrize("binary", ["valkey", "redis"], indirect=True)
def test_a_node_that_crashed_comes_back_as_itself(binary):
    with Cluster(binary) as cluster:
        node = cluster.nodes[0]
        with client_of(node) as client:
            name = client.execute_command("CLUSTER", "MYID")
            node.kill()
            node.start()
            assert client.execute_command("CLUSTER", "MYID") == name
            wait_until(lambda: "cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), "it serves again")


def test_a_cluster_that_cannot_start_leaves_nothing(tmp_path):
    cluster = Cluster()
    cluster.nodes[1].binary = tmp_path / "no-server"
    with pytest.raises(ServerError):
        cluster.start()
    assert not any(node.is_running or node._temporary for node in cluster.nodes)
