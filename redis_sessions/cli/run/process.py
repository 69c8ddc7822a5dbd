"""One run of an agent's process: input, output, signals and time limit, for its whole process group.

The group is led by a shell that ends it if this process ends unexpectedly, also by SIGKILL: else the agent would outlive its
lease. The shell is started before the agent, so that there is always something to end it, and ignores the group's signals.
"""

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Final

from redis_sessions.agents.judge import RunObserver
from redis_sessions.cli.run.job_control import job_control
from redis_sessions.cli.run.streams import InputSpool, OutputBuffer
from redis_sessions.cli.signals import Signals, send

TERMINATED_AFTER_S: Final = 10.0
_PIECE_BYTES: Final = 65_536
# How long a process that the agent left running may still write to the pipe it shared.
_LEFTOVERS_S: Final = 1.0
# It closes its output when it ignores signals; a line of input makes it exit without ending the group.
LEADER: Final = """trap '' HUP INT QUIT TERM USR1 USR2 TSTP; exec >/dev/null 2>&1; read -r _ && exit
kill -TERM 0; kill -CONT 0; sleep 5; kill -KILL 0"""


class NotStarted(Exception):
    """A program that can't be run.

    Attributes:
        missing: whether it does not exist.
    """

    def __init__(self, program: str, error: OSError) -> None:
        self.missing = isinstance(error, FileNotFoundError)
        super().__init__(f"{program} can't be run ({error.strerror or type(error).__name__})")


@dataclass(frozen=True, kw_only=True)
class Child:
    """What to run, and with what.

    Attributes:
        command: program and arguments.
        environment: of the process.
        spool: its standard input; None for this process's own.
        observer: is given its output.
        output: its output goes there; released once a turn begins.
        signals: pass on what this process receives.
        deadline_s: on the monotonic clock, when it is to be ended; None for never.
    """

    command: list[str]
    environment: Mapping[str, str]
    spool: InputSpool | None
    observer: RunObserver
    output: OutputBuffer
    signals: Signals
    deadline_s: float | None

    def run(self) -> tuple[int, bool]:
        """Run it to its end: its exit code, negative for a signal, and whether time ran out. Raises NotStarted."""
        with self.signals.held() as pass_to, _process_group() as group:
            process = _start(
                self.command,
                stdin=None if self.spool is None else subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.environment,
                process_group=group,
            )
            pass_to(partial(send, group))
            with job_control(group, process.pid, shared=self.spool is None):
                return self._follow(process, group)

    def _follow(self, process: subprocess.Popen[bytes], group: int) -> tuple[int, bool]:
        if self.spool is not None and process.stdin is not None:
            self.spool.feed(process.stdin)
        exited, exit_reported = os.pipe()
        streams = ((process.stdout, 1, self.observer.stdout), (process.stderr, 2, self.observer.stderr))
        pumps = [threading.Thread(target=self._pump, args=(*stream, exited), daemon=True) for stream in streams]
        for pump in pumps:
            pump.start()
        timed_out = False
        try:
            timed_out = self._wait(process, group)
        finally:
            if process.poll() is None:
                send(group, signal.SIGKILL)
                process.wait()
            os.close(exit_reported)
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
            # Also for the rest of the group.
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
                    # What is in the pipe when the agent ends is its own output, however slowly it is read here.
                    owed_bytes, until_s = _waiting_bytes(stream), time.monotonic() + _LEFTOVERS_S
                if stream in events:
                    piece = os.read(stream.fileno(), _PIECE_BYTES)
                    if not piece:
                        return
                    owed_bytes -= len(piece)
                    observe(piece)
                    self.output.put(number, piece)
                    if self.observer.turn_began:
                        self.output.release()


@contextlib.contextmanager
def _process_group() -> Iterator[int]:
    """A process group for a block; processes that are left in it afterwards continue. Raises NotStarted."""
    with _start(["/bin/sh", "-c", LEADER], stdin=subprocess.PIPE, process_group=0) as leader:
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


def _start(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, **how)
    except OSError as error:
        raise NotStarted(command[0], error) from None


def _waiting_bytes(stream: IO[bytes]) -> int:
    [waiting] = struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))
    return int(waiting)
