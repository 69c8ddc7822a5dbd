"""Job control: the terminal is given to an agent that reads from it, and Ctrl-Z stops agent and job until both continue."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from redis_sessions.cli.run.descendants import Family
from redis_sessions.cli.signals import send


@contextlib.contextmanager
def job_control(family: Family, group: int, agent: int, *, shared: bool) -> Iterator[None]:
    """Let an agent take part in the shell's job control for a block.

    Args:
        family: its processes.
        group: its process group.
        agent: its process ID.
        shared: whether its standard input is this process's own.
    """
    terminal = sys.stdin.fileno() if shared and sys.stdin is not None and sys.stdin.isatty() else None
    job = _Job(family, group, agent, terminal)
    handlers: dict[signal.Signals, Any] = {signal.SIGTSTP: job.stop, signal.SIGCONT: job.go_on}
    # A process in the background is stopped by SIGTTOU if it sets the terminal's group.
    handlers |= {} if terminal is None else {signal.SIGCHLD: job.follow, signal.SIGTTOU: signal.SIG_IGN}
    before = {number: signal.getsignal(number) for number in handlers}
    # It is ignored if the shell has no job control.
    if before[signal.SIGTSTP] is signal.SIG_IGN:
        del before[signal.SIGTSTP]
    for number in before:
        signal.signal(number, handlers[number])
    try:
        # It may have been stopped because it read before the terminal was its own.
        job.to_the_foreground()
        send(group, signal.SIGCONT)
        yield
    finally:
        job.take_back()
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Job:
    """The shell's job: this process, which waits, and the agent, in a process group of its own.

    Attributes:
        terminal: the agent's standard input, if that is a terminal.
    """

    family: Family
    group: int
    agent: int
    terminal: int | None
    stopping: bool = False

    def go_on(self, *_: object) -> None:
        """Continue the agent, in the foreground if this job is there."""
        self.to_the_foreground()
        self.family.send(signal.SIGCONT)

    def to_the_foreground(self) -> None:
        """Give the agent the terminal, if this job has it."""
        if self.terminal is not None and _foreground(self.terminal) == os.getpgrp():
            _give(self.terminal, self.group)

    def take_back(self) -> None:
        """Take the terminal back from the agent, if it has it."""
        if self.terminal is not None and _foreground(self.terminal) == self.group:
            _give(self.terminal, os.getpgrp())

    def follow(self, *_: object) -> None:
        """Stop this job, a pipeline's other programs too, if the agent has stopped: only the agent received the Ctrl-Z."""
        if not self.stopping and _has_stopped(self.agent):
            self._stop(os.getpgrp())

    def stop(self, *_: object) -> None:
        """Stop the agent, and then this process: the agent must not run while its lease is not renewed."""
        if not self.stopping:
            self.family.send(signal.SIGSTOP)
            self._stop(None)

    def _stop(self, others: int | None) -> None:
        self.stopping = True
        self.take_back()
        before = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        if others is not None:
            send(others, signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # To this thread, so that it stops here; but it doesn't stop if no shell could continue it, as in a container.
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, before)
        self.stopping = False
        self.go_on()


def _has_stopped(process: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOHANG) is not None
    return False


def _foreground(terminal: int) -> int | None:
    """The group in the terminal's foreground; None if it is not the controlling terminal, or is gone."""
    with contextlib.suppress(OSError):
        return os.tcgetpgrp(terminal)
    return None


def _give(terminal: int, group: int) -> None:
    # The agent may have ended, or the terminal been closed.
    with contextlib.suppress(OSError):
        os.tcsetpgrp(terminal, group)
