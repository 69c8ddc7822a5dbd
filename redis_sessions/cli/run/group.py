"""The process group an agent runs in, led by a shell that ends it if this process ends without a word, be it by SIGKILL.

Else the agent would outlive its lease. The shell leads the group from before the agent starts, so that there is no
moment in which nobody would end it; what the group is sent it ignores.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Final

# In it stands what every shell has. That its output ends tells that from now on it ignores signals.
SHELL: Final = "/bin/sh"
LEADER: Final = """trap '' HUP INT QUIT TERM USR1 USR2 TSTP; exec >/dev/null 2>&1; read -r _ && exit
kill -TERM 0; kill -CONT 0; sleep 5; kill -KILL 0"""


class NotStarted(Exception):
    """A program that can't be run.

    Attributes:
        missing: whether it isn't there at all.
    """

    def __init__(self, program: str, error: OSError) -> None:
        self.missing = isinstance(error, FileNotFoundError)
        super().__init__(f"{program} can't be run ({error.strerror or type(error).__name__})")


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """A process group for a block; what is left of it afterwards goes on. Raises NotStarted."""
    try:
        leader = subprocess.Popen(
            [SHELL, "-c", LEADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0, bufsize=0
        )
    except OSError as error:
        raise NotStarted(SHELL, error) from None
    with leader:
        assert leader.stdin is not None
        assert leader.stdout is not None
        try:
            leader.stdout.read()
            yield leader.pid
        finally:
            with contextlib.suppress(BrokenPipeError):
                leader.stdin.write(b"\n")
            # It may have been stopped with the group.
            leader.send_signal(signal.SIGCONT)


def send(group: int, number: int) -> None:
    """Send a signal to a process group, if anybody is left in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
