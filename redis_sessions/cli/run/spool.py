"""Standard input, kept so that a second run gets the same: in an unlinked file, not in memory, and passed on as it comes."""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import threading
from typing import IO, Final

_PIECE_BYTES: Final = 65_536


class Spool:
    """Copies a descriptor into a file that has no name, from the first reader on.

    Attributes:
        failed: why not all of it could be kept. Then its one reader still gets it all, and nobody may follow.
    """

    def __init__(self, source: int) -> None:
        self.failed: OSError | None = None
        self._source = source
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it lives as long as the spool
        self._size = 0
        self._unkept = b""
        self._ended = False
        self._grown = threading.Condition()
        self._thread: threading.Thread | None = None

    def feed(self, sink: IO[bytes]) -> None:
        """Give a process all of the input from its beginning, in a thread of its own, and close `sink` at the end."""
        if self._thread is None:
            # Daemons: nobody can wake a read of a standard input that stays open.
            self._thread = threading.Thread(target=self._fill, daemon=True)
            self._thread.start()
        threading.Thread(target=self._drain, args=(sink,), daemon=True).start()

    def _fill(self) -> None:
        while True:
            piece = self._read()
            with self._grown:
                try:
                    self._append(piece)
                except OSError as error:
                    self.failed = error
                self._ended = self.failed is not None or not piece
                self._grown.notify_all()
                if self._ended:
                    return

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._source, _PIECE_BYTES)
            except BlockingIOError:
                # It is shared with a program that made it so.
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
        # A process that reads no further, or has ended, is no trouble.
        with contextlib.suppress(BrokenPipeError), sink:
            while self._wait_beyond(at):
                piece = os.pread(self._file.fileno(), _PIECE_BYTES, at)
                at += os.write(sink.fileno(), piece)
            piece = self._unkept
            while piece:
                piece = piece[os.write(sink.fileno(), piece) :] or self._read()

    def _wait_beyond(self, at: int) -> bool:
        with self._grown:
            self._grown.wait_for(lambda: self._size > at or self._ended)
            return self._size > at
