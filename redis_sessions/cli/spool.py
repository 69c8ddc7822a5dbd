"""Standard input, kept so that a second run gets the same: in an unlinked file, not in memory, and passed on as it comes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from typing import IO, Final

_PIECE_BYTES: Final = 65_536


class Spool:
    """Copies a descriptor into a file that has no name, from the first reader on."""

    def __init__(self, source: int) -> None:
        self._source = source
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it lives as long as the spool
        self._size = 0
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
            try:
                piece = os.read(self._source, _PIECE_BYTES)
            except OSError:
                piece = b""
            with self._grown:
                if piece:
                    os.pwrite(self._file.fileno(), piece, self._size)
                    self._size += len(piece)
                else:
                    self._ended = True
                self._grown.notify_all()
                if not piece:
                    return

    def _drain(self, sink: IO[bytes]) -> None:
        at = 0
        # A process that reads no further, or has ended, is no trouble.
        with contextlib.suppress(BrokenPipeError), sink:
            while self._wait_beyond(at):
                piece = os.pread(self._file.fileno(), _PIECE_BYTES, at)
                at += os.write(sink.fileno(), piece)

    def _wait_beyond(self, at: int) -> bool:
        with self._grown:
            self._grown.wait_for(lambda: self._size > at or self._ended)
            return self._size > at
