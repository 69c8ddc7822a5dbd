"""Settings, data and directory of the embedded server: data survives restarts, and no other user may enter the directory."""

import pytest

from redis_sessions.errors import ServerError
from redis_sessions.server import EmbeddedServer
from tests.servers import client_of, is_redis_6, standalone

MINUTE_MS = 60_000


# What is kept


@pytest.mark.parametrize("end", [EmbeddedServer.stop, EmbeddedServer.kill])
def test_data_and_exact_expiry_survive_a_restart(binary, directory, end):
    if is_redis_6(binary):
        pytest.skip("it tells no instant of expiry")
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
            "appendfsync": "always",
            "save": "",
            "maxmemory": str(64 * 2**20),
            "maxmemory-policy": "volatile-ttl",
            "protected-mode": "yes",
        }
        # One by one, as Redis 6.2 takes them.
        assert {name: client.config_get(name)[name] for name in expected} == expected
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
