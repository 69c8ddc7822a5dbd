"""An agent's output on its way out: held back while its run may still be discarded, then let through as it comes."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from typing import Final

HOLD_BYTES: Final = 1024 * 1024


class Gate:
    """Keeps the order of pieces, and every byte.

    Attributes:
        passed: whether anything was let out; then the run must not be repeated.
        lost: why some of it could not be written; None if all was, or nobody reads it any more.
    """

    def __init__(self, *, hold: bool) -> None:
        self.passed = False
        self.lost: OSError | None = None
        self._lost: set[int] = set()
        self._mid_line = False
        self._lock = threading.Lock()
        self._open = not hold
        self._held: list[tuple[int, bytes]] = []
        self._held_bytes = 0

    def put(self, descriptor: int, piece: bytes) -> None:
        """Take a piece for stdout (1) or stderr (2). Raises OSError once that one can't be written any more."""
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

    def end_line(self) -> None:
        """Begin a new line on stderr if what was let out ended in the middle of one, so that more can be said there."""
        if self._mid_line:
            self._mid_line = False
            with contextlib.suppress(OSError):
                os.write(2, b"\n")

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
        # After a gap the rest would only look as if it were whole.
        if descriptor in self._lost:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self.passed = True
        if descriptor == 2:
            self._mid_line = not piece.endswith(b"\n")
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                # It is shared with a program that made it so.
                select.select([], [descriptor], [])
            except OSError as error:
                self._lost.add(descriptor)
                self.lost = self.lost if isinstance(error, BrokenPipeError) else error
                raise


def hold_standard_streams() -> None:
    """Let the null device stand in for those that are closed: else the next connection to Redis would take their place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free is this one, since those below are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
