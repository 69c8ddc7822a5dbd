"""Starts `redis-sessions` as forks of one process that has imported it: a new Python takes three times as long. No tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 8
_REPLY_BYTES: Final = 4


class Starter:
    """Runs command lines, each in a process and a session of its own, by pipes; one at a time."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            # What it writes to is a pipe from the first, as Python looks only then at what its streams are.
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[number],
            )

    def close(self) -> None:
        self._connection.close()
        assert self._process.communicate(timeout=60) == (b"", b"")

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], given: bytes | None, timeout_s: float
    ) -> tuple[int, bytes, bytes]:
        """Its exit code (negative: a signal), stdout and stderr. It has no stdin unless something is given."""
        (stdin, to_it), (from_it, stdout), (errors, stderr) = (os.pipe() for _ in range(3))
        if given is None:
            os.close(stdin)
            stdin = os.open(os.devnull, os.O_RDONLY)
        order = json.dumps({"argv": [*arguments], "env": {**environment}, "directory": str(Path.cwd())}).encode()
        socket.send_fds(self._connection, [len(order).to_bytes(_HEAD_BYTES)], [stdin, stdout, stderr])
        self._connection.sendall(order)
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
        self._connection.settimeout(timeout_s)
        process = self._reply()
        with ThreadPoolExecutor(3) as pool:
            pool.submit(_write, to_it, given or b"")
            out, err = (pool.submit(_read, descriptor) for descriptor in (from_it, errors))
            try:
                code = self._reply()
            except TimeoutError:
                os.killpg(process, signal.SIGKILL)
                self._reply()  # the next reply is that of the next command line
                raise
            return code, out.result(timeout_s), err.result(timeout_s)

    def _reply(self) -> int:
        return int.from_bytes(_received(self._connection, _REPLY_BYTES), signed=True)


def _write(descriptor: int, data: bytes) -> None:
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
    except BrokenPipeError:
        return  # as a program that reads no more


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as stream:
        return stream.read()


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, "the other end is gone"
        data += piece
    return data


def _serve(connection: socket.socket) -> None:
    while True:
        head, descriptors, *_ = socket.recv_fds(connection, _HEAD_BYTES, 3)
        if not head:
            return
        order = json.loads(_received(connection, int.from_bytes(head)))
        child = os.fork()
        if child == 0:
            _play(**order, descriptors=descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(child.to_bytes(_REPLY_BYTES, signed=True))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(code.to_bytes(_REPLY_BYTES, signed=True))


def _play(argv: list[str], env: dict[str, str], directory: str, descriptors: list[int]) -> None:
    os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(env)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.argv = ["redis-sessions", *argv]
    main()


if __name__ == "__main__":
    from redis_sessions.cli import main
    from redis_sessions.cli.run.command import run  # noqa: F401 - imported before the fork
    from redis_sessions.store import SessionStore  # noqa: F401

    _serve(socket.socket(fileno=int(sys.argv[1])))
