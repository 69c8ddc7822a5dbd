"""Where the embedded server listens: a port or a socket that is its own, or it says which one is in use."""

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from redis_sessions import server as server_module
from redis_sessions.errors import ServerError
from redis_sessions.server import SOCKET_PATH_MAX_BYTES, EmbeddedServer
from tests.servers import client_of, standalone


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


def test_a_given_port_in_use(binary, listener):
    port = listener.getsockname()[1]
    server = EmbeddedServer(binary=binary, port=port)
    with pytest.raises(ServerError, match=f"port {port}") as caught:
        server.start()
    assert caught.value.remedy
    assert not server.is_running


def test_a_free_port_that_was_taken_is_replaced(binary, listener, monkeypatch):
    port = listener.getsockname()[1]
    fresh = random.sample(server_module.FREE_PORTS, 10)
    monkeypatch.setattr(random, "sample", lambda *_: [port, *fresh])
    with standalone(binary) as server, client_of(server) as client:
        assert server.port in fresh
        assert client.info("server")["process_id"] == server.pid


def test_a_free_port_whose_cluster_bus_port_was_taken_is_replaced(binary, monkeypatch):
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


def test_a_file_at_the_path_of_the_socket_is_kept(tmp_path):
    (tmp_path / "notes").write_text("dear")
    with pytest.raises(ServerError, match="in use"):
        EmbeddedServer(socket=tmp_path / "notes").start()
    assert (tmp_path / "notes").read_text() == "dear"


@pytest.mark.parametrize("length", [SOCKET_PATH_MAX_BYTES + 1, 1000])
def test_a_socket_path_that_is_too_long(length):
    with pytest.raises(ServerError, match=str(SOCKET_PATH_MAX_BYTES)) as caught:
        EmbeddedServer(socket=Path("/".ljust(length, "x"))).start()
    assert caught.value.remedy
