"""One run of an agent's process: output watched and passed on, input fed, signals and time limit for its whole group."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final

from redis_sessions.agents.judge import RunObserver
from redis_sessions.cli.run.gate import Gate
from redis_sessions.cli.run.group import NotStarted, process_group, send
from redis_sessions.cli.run.job_control import job_control
from redis_sessions.cli.run.spool import Spool

TERMINATED_AFTER_S: Final = 10.0
_PIECE_BYTES: Final = 65_536
# How long what an agent left running may go on writing into the pipe it shared.
_LEFTOVERS_S: Final = 1.0
_TO_STOP: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PASSED_ON: Final = (*_TO_STOP, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(BaseException):
    """A signal asked this program to stop, and no agent runs that it could be passed on to.

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(number)


class Signals:
    """While installed, signals go to the agent's whole process group, and before the first one runs, raise Stopped.

    After it they are noted, and keep a second one from being started: what a turn gave is saved whatever comes.
    """

    def __init__(self) -> None:
        self._group: int | None = None
        self._stopped_by: int | None = None
        self._waiting: list[int] | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over for a block, but for those that are ignored, as SIGHUP is under nohup."""
        before = {number: signal.getsignal(number) for number in _PASSED_ON}
        taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for number in taken:
            signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, handler in taken.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def starting(self) -> Iterator[Callable[[int], None]]:
        """Keep them for a group that is about to be, which the block then names by calling what it gets."""
        waiting = self._waiting = self._waiting or []

        def to(group: int) -> None:
            self._group = group
            while waiting:
                send(group, waiting.pop(0))

        try:
            yield to
        finally:
            self._group = None

    def check(self) -> None:
        """Raise Stopped if a signal to stop has come, be it to an agent that has ended since."""
        if self._stopped_by is not None:
            raise Stopped(self._stopped_by)

    def _receive(self, number: int, _frame: object) -> None:
        if number in _TO_STOP:
            self._stopped_by = number
        if self._group is not None:
            send(self._group, number)
        elif self._waiting is not None:
            self._waiting.append(number)
        else:
            self.check()


@dataclass(frozen=True, kw_only=True)
class Child:
    """What to run, and what with.

    Attributes:
        command: program and arguments.
        environment: of the process.
        spool: what it gets as standard input; None lets it have this process's own.
        observer: is given its output.
        gate: where its output goes; opened once a turn begins.
        signals: pass on what this process receives.
        deadline_s: on the monotonic clock, when it is to be ended; None for never.
    """

    command: list[str]
    environment: dict[str, str]
    spool: Spool | None
    observer: RunObserver
    gate: Gate
    signals: Signals
    deadline_s: float | None

    def run(self) -> tuple[int, bool]:
        """Run it to its end: its exit code, negative for a signal, and whether time ran out. Raises NotStarted."""
        with self.signals.starting() as passed_to, process_group() as group:
            process = self._start(group)
            passed_to(group)
            return self._follow(process, group)

    def _start(self, group: int) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self.command,
                stdin=None if self.spool is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.environment,
                process_group=group,
                bufsize=0,
            )
        except OSError as error:
            raise NotStarted(self.command[0], error) from None

    def _follow(self, process: subprocess.Popen[bytes], group: int) -> tuple[int, bool]:
        with job_control(group, process.pid, shared=self.spool is None):
            if self.spool is not None and process.stdin is not None:
                self.spool.feed(process.stdin)
            exited, exit_told = os.pipe()
            pumps = [
                threading.Thread(target=self._pump, args=(stream, number, observe, exited), daemon=True)
                for stream, number, observe in (
                    (process.stdout, 1, self.observer.stdout),
                    (process.stderr, 2, self.observer.stderr),
                )
            ]
            for pump in pumps:
                pump.start()
            timed_out = False
            try:
                timed_out = self._wait(process, group)
            finally:
                if process.poll() is None:
                    send(group, signal.SIGKILL)
                    process.wait()
                os.close(exit_told)
                for pump in pumps:
                    pump.join()
                os.close(exited)
        return process.returncode, timed_out

    def _wait(self, process: subprocess.Popen[bytes], group: int) -> bool:
        try:
            process.wait(None if self.deadline_s is None else max(0.0, self.deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            send(group, signal.SIGTERM)
            send(group, signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TERMINATED_AFTER_S)
            # What of the group is left, too.
            send(group, signal.SIGKILL)
            process.wait()
            return True
        return False

    def _pump(self, stream: IO[bytes], number: int, observe: Callable[[bytes], None], exited: int) -> None:
        with stream, selectors.DefaultSelector() as ready, contextlib.suppress(OSError):
            ready.register(stream, selectors.EVENT_READ)
            ready.register(exited, selectors.EVENT_READ)
            owed_bytes, until_s = 0, None
            while until_s is None or owed_bytes > 0 or time.monotonic() < until_s:
                events = [key.fileobj for key, _ in ready.select(None if until_s is None else _LEFTOVERS_S)]
                if exited in events:
                    ready.unregister(exited)
                    # What stood in the pipe when the agent ended is its own, however slowly it is read from here.
                    owed_bytes, until_s = _waiting_bytes(stream), time.monotonic() + _LEFTOVERS_S
                if stream in events:
                    piece = os.read(stream.fileno(), _PIECE_BYTES)
                    if not piece:
                        return
                    owed_bytes -= len(piece)
                    observe(piece)
                    self.gate.put(number, piece)
                    if self.observer.turn_began:
                        self.gate.let_through()


def _waiting_bytes(stream: IO[bytes]) -> int:
    [waiting] = struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))
    return int(waiting)
