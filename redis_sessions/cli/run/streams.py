"""An agent's streams: input kept for a second run, and output buffered while its run may still be discarded."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import tempfile
import threading
from typing import IO, Final

HOLD_BYTES: Final = 1024 * 1024
_PIECE_BYTES: Final = 65_536


class InputSpool:
    """Copies a descriptor, from the first reader on, into an unlinked file, so that each reader gets all of it.

    Attributes:
        failed: why not all of it could be kept. Then the first reader still gets all of it, and there may be no second.
    """

    def __init__(self, source: int) -> None:
        self.failed: OSError | None = None
        self._source = source
        self._file = _unlinked_file()
        self._size = 0
        self._taken = 0
        self._unkept = b""
        self._ended = False
        self._grown = threading.Condition()
        self._thread: threading.Thread | None = None

    def feed(self, sink: IO[bytes]) -> None:
        """Write all of the input to a process, in a thread, as it comes; close `sink` at the end."""
        if self._thread is None:
            # Daemons, since a read of a standard input that stays open can't be interrupted.
            self._thread = threading.Thread(target=self._fill, daemon=True)
            self._thread.start()
        threading.Thread(target=self._drain, args=(sink,), daemon=True).start()

    def _fill(self) -> None:
        while not self._ended:
            # What the agent doesn't ask for stays there for other programs to read, and takes no room.
            with self._grown:
                self._grown.wait_for(lambda: self._taken == self._size)
            piece = self._read()
            with self._grown:
                try:
                    self._append(piece)
                except OSError as error:
                    self.failed = error
                self._ended = self.failed is not None or not piece
                self._grown.notify_all()

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._source, _PIECE_BYTES)
            except BlockingIOError:
                # Another program that shares it made it non-blocking.
                select.select([self._source], [], [])
            except OSError:
                return b""

    def _append(self, piece: bytes) -> None:
        self._unkept = piece
        while self._unkept:
            written = os.pwrite(self._file.fileno(), self._unkept, self._size)
            self._size += written
            self._unkept = self._unkept[written:]

    def _drain(self, sink: IO[bytes]) -> None:
        at = 0
        # A process may have ended, or read no further.
        with contextlib.suppress(BrokenPipeError), sink:
            while self._wait_beyond(at):
                piece = os.pread(self._file.fileno(), _PIECE_BYTES, at)
                at += os.write(sink.fileno(), piece)
                with self._grown:
                    self._taken = max(self._taken, at)
                    self._grown.notify_all()
            piece = self._unkept
            while piece:
                piece = piece[os.write(sink.fileno(), piece) :] or self._read()

    def _wait_beyond(self, at: int) -> bool:
        with self._grown:
            self._grown.wait_for(lambda: self._size > at or self._ended)
            return self._size > at


def _unlinked_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(buffering=0)
    except OSError:
        if not hasattr(os, "memfd_create"):
            raise
        # In memory, where no directory is writable, as in a container whose file system is read-only.
        return os.fdopen(os.memfd_create("input"), "r+b", buffering=0)


class OutputBuffer:
    """Holds output back until it is released, then writes it as it comes. Keeps the order of pieces, and every byte.

    Attributes:
        passed: whether anything was written; then the run must not be repeated.
        seen: the descriptors that anything came for.
        lost: why some of it could not be written; None if all was, or nobody reads it any more.
        cut: whether some of it could not be written for either reason, which may have made the agent fail.
    """

    def __init__(self, *, hold: bool) -> None:
        self.passed = False
        self.seen: set[int] = set()
        self.lost: OSError | None = None
        self._lost: set[int] = set()
        self._given_up = False
        self._mid_line = False
        self._lock = threading.Lock()
        self._released = not hold
        self._held: list[tuple[int, bytes]] = []
        self._held_bytes = 0

    @property
    def cut(self) -> bool:
        return bool(self._lost) or self._given_up

    def put(self, descriptor: int, piece: bytes) -> None:
        """Take a piece for stdout (1) or stderr (2). Raises OSError once that one can't be written any more."""
        with self._lock:
            self.seen.add(descriptor)
            if not self._released:
                self._held.append((descriptor, piece))
                self._held_bytes += len(piece)
                if self._held_bytes > HOLD_BYTES:
                    self._release()
                return
        self._write(descriptor, piece)

    def release(self) -> None:
        """Write what is held, and from now on everything."""
        if self._given_up:
            # A thread that can't write may hold the lock.
            return
        with self._lock:
            self._release()

    def give_up(self) -> None:
        """Count as lost what a thread is still writing, since nobody reads it; so that what follows doesn't wait, too."""
        self._given_up, self.lost = True, TimeoutError(errno.ETIMEDOUT, "nobody reads it")
        writable = select.select([], [1, 2], [], 0)[1]
        null = os.open(os.devnull, os.O_WRONLY)
        for descriptor in {1, 2}.difference(writable):
            os.dup2(null, descriptor)
        os.close(null)

    def end_line(self) -> None:
        """Start a new line on stderr if the last one written there is not complete."""
        if self._mid_line:
            self._mid_line = False
            with contextlib.suppress(OSError):
                os.write(2, b"\n")

    def discard(self) -> bytes:
        """Forget what is held, and return it."""
        with self._lock:
            held, self._held = self._held, []
            return b"".join(piece for _, piece in held)

    def _release(self) -> None:
        held, self._held, self._released = self._held, [], True
        for descriptor, piece in held:
            with contextlib.suppress(OSError):
                self._write(descriptor, piece)

    def _write(self, descriptor: int, piece: bytes) -> None:
        # After a gap the rest would look complete.
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
                # Another program that shares it made it non-blocking.
                select.select([], [descriptor], [])
            except OSError as error:
                self._lost.add(descriptor)
                self.lost = self.lost if isinstance(error, BrokenPipeError) else error
                raise


def open_standard_streams() -> None:
    """Open the null device for each standard stream that is closed: else the next connection to Redis would be that one."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # It gets this number, the lowest that is free, since the ones below are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
