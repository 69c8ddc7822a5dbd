"""The embedded server leaves nothing running, however it, its owner or its start ends."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from redis_sessions import server as server_module
from redis_sessions.errors import ServerError
from redis_sessions.server import EmbeddedServer
from tests.servers import client_of, exists, standalone, wait_until

ROOT = Path(server_module.__file__).parents[1]


def script(path: Path, text: str) -> Path:
    """A stand-in for a server that misbehaves."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


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


def test_a_server_that_is_never_ready_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "DEADLINE_S", 3)
    stuck = script(tmp_path / "stuck", f"echo $$ >{tmp_path}/pid; echo Loading for ever; exec sleep 100")
    server = standalone(stuck)
    with pytest.raises(ServerError, match="Loading for ever"):
        server.start()
    assert not exists(int((tmp_path / "pid").read_text()))


def test_a_server_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    deaf = script(tmp_path / "deaf", "trap '' TERM; echo Ready to accept connections; while :; do sleep 1; done")
    server = standalone(deaf)
    server.start()
    pid = server.pid
    monkeypatch.setattr(server_module, "DEADLINE_S", 0.05)
    server.stop()
    assert not exists(pid)


def test_wait_returns_when_another_thread_stops_the_server(binary):
    with standalone(binary) as server:
        waited_for = server._process._waitpid_lock

        def stop():
            wait_until(waited_for.locked, "the other thread waits")
            server.stop()

        stopper = threading.Thread(target=stop)
        stopper.start()
        status = server.wait()
        stopper.join()
    assert status == 0


def test_wait_reports_a_crash_and_the_lifeline_ends(binary):
    with standalone(binary) as server:
        lifeline = server._lifeline
        assert lifeline is not None
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        assert not server.is_running
        assert not exists(lifeline.pid)


def test_the_server_has_its_own_session_and_outlives_its_starting_thread(binary):
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


def test_the_server_holds_the_lock(directory):
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
