"""A middlebox in front of a server: it forgets connections when told to, as NAT and load balancers do. No tests."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from enum import Enum
from typing import Final, Self

from tests.servers import wait_until

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Forget(Enum):
    """What a client notices of a connection that was forgotten while it was idle."""

    SILENTLY = b"s"  # nothing: no answer ever comes
    RESET = b"r"  # a reset at once
    RESET_LATER = b"l"  # a reset by its next packet, which never reaches the server


class Middlebox:
    """Passes connections on to a port. Use it in a `with`.

    Attributes:
        accepted: how many connections came.
        resets: how many of the forgotten ones were used again, and reset by that.
    """

    def __init__(self, port: int | None) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}"
        self.accepted = self.resets = 0
        self._passing: list[list[socket.socket]] = []
        self._silent: list[socket.socket] = []
        self._doomed: list[socket.socket] = []
        self._orders = 0
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.send(b"x")
        self._thread.join()
        ends = [end for pair in self._passing for end in pair]
        for each in (self._listener, self._wake, self._woken, *ends, *self._silent, *self._doomed):
            each.close()

    def forget(self, how: Forget) -> None:
        """Forget all connections; returns when that is done."""
        carried_out = self._orders
        self._wake.send(how.value)
        wait_until(lambda: self._orders > carried_out, "the middlebox forgets")

    def _run(self) -> None:
        while True:
            ends = {end: other for a, b in self._passing for end, other in ((a, b), (b, a))}
            ready, _, _ = select.select([self._listener, self._woken, *self._doomed, *ends], [], [])
            for one in ready:
                if one is self._woken:
                    if (order := one.recv(1)) == b"x":
                        return
                    self._forget(Forget(order))
                    break
                if one is self._listener:
                    client = one.accept()[0]
                    self.accepted += 1
                    self._passing.append([client, socket.create_connection(("127.0.0.1", self._server_port))])
                elif one in self._doomed:
                    self._doomed.remove(one)
                    self.resets += bool(_read(one))
                    _reset(one)
                elif data := _read(one):
                    _write(ends[one], data)
                else:
                    self._passing = [pair for pair in self._passing if one not in pair]
                    one.close()
                    ends[one].close()
                    break

    def _forget(self, how: Forget) -> None:
        for client, server in self._passing:
            if how is Forget.SILENTLY:
                self._silent += [client, server]
                continue
            server.close()
            if how is Forget.RESET:
                _reset(client)
            else:
                self._doomed.append(client)
        self._passing = []
        self._orders += 1


def _read(one: socket.socket) -> bytes:
    try:
        return one.recv(65_536)
    except OSError:
        return b""


def _write(one: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it has gone, which its own end says
        one.sendall(data)


def _reset(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    one.close()
