"""Proxies that spread keys over servers: Debian's twemproxy, and one that routes as Envoy's does. No tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from redis_sessions.server import EmbeddedServer
from tests.faults.resp import Messages, words
from tests.servers import wait_until

# What Envoy before 1.35 sends to the server of the key that follows; of a script it is the third argument.
_BY_KEY: Final = frozenset(b"DEL EXISTS GET GETRANGE HGET HMGET HSET INCR INCRBY PEXPIRE PTTL SET TTL".split())


@contextlib.contextmanager
def envoy(servers: list[EmbeddedServer], *, also: frozenset[bytes] = frozenset()) -> Iterator[str]:
    """The URL of a proxy that routes by hash tags, as Envoy does, and sends the commands of `also` to the first server."""
    ports = [server.port for server in servers]

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.ExitStack() as stack:
                behind = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for port in ports]
                requests = Messages()
                while data := self.request.recv(65_536):
                    for message in requests.feed(data):
                        self.request.sendall(_answer(message, behind))

    def _answer(message: bytes, behind: list[socket.socket]) -> bytes:
        name, *arguments = words(message)
        name = name.upper()
        if name in (b"EVAL", b"EVALSHA") and len(arguments) > 2:
            at = _choice(arguments[2], len(behind))
        elif name in _BY_KEY:
            at = _choice(arguments[0], len(behind))
        elif name in {b"TIME", *also}:
            at = 0
        else:
            return b"+PONG\r\n" if name == b"PING" else b"-ERR unknown command '%b'\r\n" % name.lower()
        behind[at].sendall(message)
        replies = Messages()
        while not (whole := replies.feed(behind[at].recv(65_536))):
            pass
        return whole[0]

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"redis://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _choice(key: bytes, count: int) -> int:
    tag = key.partition(b"{")[2].partition(b"}")[0]
    return zlib.crc32(tag or key) % count


def find_twemproxy() -> str:
    """The program of Debian's package `nutcracker`; skips the test where there is none."""
    places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    return shutil.which("nutcracker", path=places) or pytest.skip("no nutcracker (twemproxy) on the PATH")


@contextlib.contextmanager
def twemproxy(servers: list[EmbeddedServer], directory: Path, *, hash_tag: str = "") -> Iterator[str]:
    """The URL of a twemproxy before these servers, which hashes whole keys, or only what stands in `hash_tag`.

    Which server has a key depends on their names, not on their ports.
    """
    program = find_twemproxy()
    port, stats_port = _free_ports(2)
    config: dict[str, Any] = {"listen": f"127.0.0.1:{port}", "hash": "fnv1a_64", "distribution": "ketama", "redis": "true"}
    config |= {"hash_tag": f'"{hash_tag}"'} if hash_tag else {}
    lines = [f"  {name}: {value}" for name, value in config.items()]
    lines += ["  servers:", *(f"   - 127.0.0.1:{server.port}:1 server{n}" for n, server in enumerate(servers))]
    file = directory / f"twemproxy-{port}.yml"
    file.write_text("\n".join(["pool:", *lines, ""]))
    log = directory / f"twemproxy-{port}.log"
    with subprocess.Popen([program, "-c", file, "-o", log, "-s", str(stats_port)]) as process:
        try:
            wait_until(lambda: _listens(port), "twemproxy listens")
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
