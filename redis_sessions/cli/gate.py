"""An agent's output on its way out: held back while its run may still be discarded, then let through as it comes."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

HOLD_BYTES: Final = 1024 * 1024


class Gate:
    """Keeps the order of pieces, and every byte.

    Attributes:
        passed: whether anything was let out; then the run must not be repeated.
    """

    def __init__(self, *, hold: bool) -> None:
        self.passed = False
        self._lock = threading.Lock()
        self._open = not hold
        self._held: list[tuple[int, bytes]] = []
        self._held_bytes = 0

    def put(self, descriptor: int, piece: bytes) -> None:
        """Take a piece for stdout (1) or stderr (2). Raises OSError once nobody reads that one any more."""
        with self._lock:
            if not self._open:
                self._held.append((descriptor, piece))
                self._held_bytes += len(piece)
                if self._held_bytes > HOLD_BYTES:
                    self._let_out()
                return
        self._write(descriptor, piece)

    def let_through(self) -> None:
        """Let out what is held, and from now on everything."""
        with self._lock:
            self._let_out()

    def discard(self) -> bytes:
        """Forget what is held; returns it."""
        with self._lock:
            held, self._held = self._held, []
            return b"".join(piece for _, piece in held)

    def _let_out(self) -> None:
        held, self._held, self._open = self._held, [], True
        for descriptor, piece in held:
            with contextlib.suppress(OSError):
                self._write(descriptor, piece)

    def _write(self, descriptor: int, piece: bytes) -> None:
        self.passed = True
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
