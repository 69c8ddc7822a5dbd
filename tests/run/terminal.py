"""A terminal, and the process that leads its session. No tests."""

from __future__ import annotations

import os
import pty
import sys
import threading
from collections.abc import Callable
from subprocess import Popen
from typing import Any, Self

# Opening it again makes it the controlling terminal of the new session.
LEAD = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A terminal for what `start` starts by the words that it is given, on the streams. Use it in a `with`."""

    def __init__(self, start: Callable[..., Popen[bytes]]) -> None:
        self.ours, theirs = pty.openpty()
        try:
            streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
            self.process = start(sys.executable, "-c", LEAD, **streams)
        except BaseException:
            os.close(self.ours)
            raise
        finally:
            os.close(theirs)
        self._read_so_far = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=10)
        os.close(self.ours)

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self.ours, 65_536)
            except OSError:  # on Linux the end of a terminal is an error
                return
            if not piece:
                return
            self._read_so_far += piece

    @property
    def shown(self) -> str:
        return self._read_so_far.decode("utf-8", "replace").replace("\r\n", "\n")

    def type(self, data: bytes) -> None:
        os.write(self.ours, data)

    def in_front(self) -> int:
        """The process group that has it."""
        return os.tcgetpgrp(self.ours)

    def wait(self) -> int:
        """The exit code, when the process has ended and all that is shown has been read."""
        code = self.process.wait(timeout=20)
        self._reader.join(timeout=10)
        return code
