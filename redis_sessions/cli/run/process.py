"""One run of an agent's process: input, output, signals, time limits and job control, for all processes that belong to it.

The agent's group is led by a shell that ends all of them if this process ends unexpectedly, also by SIGKILL: else the agent
would outlive its lease. The shell is started before the agent, so that there is always something to end it, and ignores the
group's signals.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import selectors
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, Final, Literal

from redis_sessions.agents.judge import RunObserver
from redis_sessions.cli.run import descendants
from redis_sessions.cli.run.descendants import Family
from redis_sessions.cli.run.streams import InputSpool, OutputBuffer
from redis_sessions.cli.signals import TO_STOP, Signals, send

# From SIGTERM to SIGKILL: for an agent whose time is over, and for what is left when an agent was ended.
TERMINATED_AFTER_S: Final = 10.0
GRACE_S: Final = 5.0
# How long an agent may run on in silence after its closing record.
LINGER_S: Final = 60.0
_PIECE_BYTES: Final = 65_536
# Python runs signal handlers in the main thread, which a signal that the kernel hands to another thread does not wake
# (python/cpython #85300, open; all versions).
_SLICE_S: Final = 0.5
# How long a process that the agent left running may still write to the pipe it shared.
_LEFTOVERS_S: Final = 1.0
# It closes its output when it ignores signals. Its input: a line with the agent's process ID, and one that makes it exit. If
# that ends before, it ends them all; with the group alone if Python is gone.
LEADER: Final = """trap '' HUP INT QUIT TERM USR1 USR2 TSTP TTIN TTOU; exec >/dev/null 2>&1; read -r agent; read -r _ && exit
"$0" -IS "$1" $$ "$2" "$3" $agent || { kill -TERM 0; kill -CONT 0; sleep "$3"; kill -KILL 0; }"""


class NotStarted(Exception):
    """A program that can't be run.

    Attributes:
        missing: whether it does not exist.
    """

    def __init__(self, program: str, error: OSError) -> None:
        self.missing = isinstance(error, FileNotFoundError)
        super().__init__(f"{program} can't be run ({error.strerror or type(error).__name__})")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a process ended.

    Attributes:
        code: its exit code, negative for a signal.
        ended_for: why it was ended here: its time was over, or it hung after its closing record.
        signal: the first signal passed on that asked it to stop.
        closed: what its closing record had said when it was asked to end, for whichever of these reasons.
    """

    code: int
    ended_for: Literal["timeout", "linger"] | None = None
    signal: int | None = None
    closed: str | None = None


@dataclass(kw_only=True)
class Child:
    """What to run, and with what.

    Attributes:
        command: program and arguments.
        environment: of the process.
        spool: its standard input; None for this process's own.
        observer: is given its output.
        output: its output goes there; released once the session was taken.
        signals: pass on what this process receives.
        deadline_s: when its time is over, by time.monotonic(); None for never.
        linger_s: how long it may run on in silence after its closing record.
        answered: called once, with the session's ID, when the model has answered.
    """

    command: list[str]
    environment: Mapping[str, str]
    spool: InputSpool | None
    observer: RunObserver
    output: OutputBuffer
    signals: Signals
    deadline_s: float | None = None
    linger_s: float = LINGER_S
    answered: Callable[[str], None] = lambda _: None
    _events: queue.SimpleQueue[Literal["ended", "closed"]] = field(default_factory=queue.SimpleQueue)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: bool = False
    _spoke_s: float | None = None
    _answered: bool = False
    _asked_s: float | None = None
    _signal: int | None = None
    _closed: str | None = None

    def run(self) -> Outcome:
        """Run it to its end. Raises NotStarted."""
        token = uuid.uuid4().hex
        with self.signals.held() as pass_to, _process_group(token) as (group, tell_leader):
            process = _start(
                self.command,
                stdin=None if self.spool is None else subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**self.environment, descendants.VARIABLE: _tokens(self.environment, token)},
                process_group=group,
                # What a shell has opened for it, as by `<(…)` or `3<file`. Python's own are not inherited.
                close_fds=False,
            )
            family = Family(group, token)
            tell_leader(f"{process.pid} {family.add(process.pid)}\n")
            pass_to(partial(self._pass_on, family, group))
            with job_control(family, group, process.pid, shared=self.spool is None):
                return self._follow(process, family)

    def _pass_on(self, family: Family, group: int, number: int) -> None:
        if number not in (*TO_STOP, signal.SIGQUIT):
            # It ends who doesn't expect it.
            send(group, number)
            return
        self._asked_s = self._asked_s or time.monotonic()
        if not self._ended and self._signal is None:
            self._signal, self._closed = number, self.observer.closed
        # What is stopped would receive it only when it continues.
        family.send(number, signal.SIGCONT)

    def _follow(self, process: subprocess.Popen[bytes], family: Family) -> Outcome:
        if self.spool is not None and process.stdin is not None:
            self.spool.feed(process.stdin)
        exited, exit_reported = os.pipe()
        streams = ((process.stdout, 1, self.observer.stdout), (process.stderr, 2, self.observer.stderr))
        pumps = [threading.Thread(target=self._pump, args=(*stream, exited), daemon=True) for stream in streams]
        for thread in (threading.Thread(target=self._await, args=(process,), daemon=True), *pumps):
            thread.start()
        ended_for: Literal["timeout", "linger"] | None = None
        over = False
        try:
            ended_for = self._wait(family)
            over = True
        finally:
            if not over:
                family.end(None)
            process.wait()
            os.close(exit_reported)
            if self._passed_on(pumps):
                os.close(exited)
            else:
                self.output.give_up()
        return Outcome(code=process.returncode, ended_for=ended_for, signal=self._signal, closed=self._closed)

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._events.put("ended")

    def _wait(self, family: Family) -> Literal["timeout", "linger"] | None:
        """Wait for its end, and for that of what it started if it was ended; why it was ended."""
        ended_for: Literal["timeout", "linger"] | None = None
        while not self._next_event(until_s=min(filter(None, (self.deadline_s, self._lingers_until_s)), default=None)):
            lingers_s, now_s = self._lingers_until_s, time.monotonic()
            if lingers_s is not None and lingers_s <= now_s:
                ended_for = "linger"
            elif self.deadline_s is not None and self.deadline_s <= now_s:
                ended_for = "timeout"
            else:
                # It has spoken again since.
                continue
            if ended_for == "linger" or self._signal is None:
                self._closed = self.observer.closed
            family.send(signal.SIGTERM, signal.SIGCONT)
            if not self._next_event(until_s=now_s + TERMINATED_AFTER_S, closing=False):
                family.end(None)
                self._next_event(until_s=None, closing=False)
            break
        self._ended = True
        if ended_for or self._signal:
            family.end(GRACE_S)
        return ended_for

    @property
    def _lingers_until_s(self) -> float | None:
        spoke_s = self._spoke_s  # looked at once: a thread that reads output may set it to None
        return None if spoke_s is None else spoke_s + self.linger_s

    def _next_event(self, *, until_s: float | None, closing: bool = True) -> bool:
        """Wait until it has ended, or until then, or, with `closing`, until it closes its turn. Whether it has ended."""
        while until_s is None or time.monotonic() < until_s:
            left_s = _SLICE_S if until_s is None else min(_SLICE_S, max(0.0, until_s - time.monotonic()))
            with contextlib.suppress(queue.Empty):
                ended = self._events.get(timeout=left_s) == "ended"
                if ended or closing:
                    return ended
        return False

    def _passed_on(self, pumps: list[threading.Thread]) -> bool:
        """Wait until all output is passed on; after a signal or the time limit GRACE_S at most. Whether all is."""
        ended_s = time.monotonic()
        for pump in pumps:
            while pump.is_alive():
                asked_s = min(filter(None, (self._asked_s, self.deadline_s)), default=None)
                if asked_s is not None and time.monotonic() >= max(ended_s, asked_s) + GRACE_S:
                    return False
                pump.join(_SLICE_S)
        return True

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
                    self._take_note()
                    self.output.put(number, piece)
                    if self.observer.taken:
                        self.output.release()

    def _take_note(self) -> None:
        """Act on what the observer has seen by now."""
        with self._lock:
            if self.observer.closed:
                first, self._spoke_s = self._spoke_s is None, time.monotonic()
                if first:
                    self._events.put("closed")
            else:
                # A further turn has begun.
                self._spoke_s = None
            session_id = None if self._answered else self.observer.answered_id
            self._answered = self._answered or session_id is not None
        if session_id is not None:
            self.answered(session_id)


@contextlib.contextmanager
def _process_group(token: str) -> Iterator[tuple[int, Callable[[str], None]]]:
    """A process group for a block, and what tells its leader of the agent. Raises NotStarted.

    Processes that are left in it afterwards continue.
    """
    words = ["/bin/sh", "-c", LEADER, sys.executable, descendants.__file__, token, str(GRACE_S)]
    with _start(words, stdin=subprocess.PIPE, process_group=0) as leader:
        assert leader.stdin is not None
        assert leader.stdout is not None

        def tell(line: str) -> None:
            assert leader.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                leader.stdin.write(line.encode())

        try:
            leader.stdout.read()
            yield leader.pid, tell
        finally:
            # A further one in case it was never told of an agent.
            tell("\n\n")
            # It may have been stopped with the group.
            leader.send_signal(signal.SIGCONT)


def _tokens(environment: Mapping[str, str], token: str) -> str:
    return " ".join(filter(None, (environment.get(descendants.VARIABLE), token)))


def _start(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, **how)
    except OSError as error:
        raise NotStarted(command[0], error) from None


def _waiting_bytes(stream: IO[bytes]) -> int:
    [waiting] = struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))
    return int(waiting)


@contextlib.contextmanager
def job_control(family: Family, group: int, agent: int, *, shared: bool) -> Iterator[None]:
    """Let an agent take part in the shell's job control for a block.

    Args:
        family: its processes.
        group: its process group.
        agent: its process ID.
        shared: whether its standard input is this process's own.
    """
    reads = shared and sys.stdin is not None and sys.stdin.isatty()
    terminal = sys.stdin.fileno() if reads else _controlling_terminal()
    job = _Job(family, group, agent, terminal, asks=reads)
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
        if terminal is not None and not reads:
            os.close(terminal)


@dataclass
class _Job:
    """The shell's job: this process, which waits, and the agent, in a process group of its own.

    Attributes:
        terminal: the agent's standard input, if that is a terminal, or else the controlling one.
        asks: whether the agent reads from the terminal, also one that asks for a password there whatever its input is.
    """

    family: Family
    group: int
    agent: int
    terminal: int | None
    asks: bool
    stopping: bool = False

    def go_on(self, *_: object) -> None:
        """Continue the agent, in the foreground if this job is there."""
        self.to_the_foreground()
        self.family.send(signal.SIGCONT)

    def to_the_foreground(self) -> None:
        """Give the agent the terminal, if it asks for it and this job has it."""
        if self.asks and self.terminal is not None and _foreground(self.terminal) == os.getpgrp():
            _give(self.terminal, self.group)

    def take_back(self) -> None:
        """Take the terminal back from the agent, if it has it."""
        if self.terminal is not None and _foreground(self.terminal) == self.group:
            _give(self.terminal, os.getpgrp())

    def follow(self, *_: object) -> None:
        """Stop this job, a pipeline's other programs too, if the agent has stopped: only the agent received the Ctrl-Z.

        If it has stopped because it needs the terminal, which this job has, it gets the terminal.
        """
        number = None if self.stopping else _stopped_by(self.agent)
        needs = number in (signal.SIGTTIN, signal.SIGTTOU)
        if number is None or not (needs or self.asks):
            return
        self.asks = True
        if needs and self.terminal is not None and _foreground(self.terminal) in (os.getpgrp(), self.group):
            self.go_on()
        else:
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


def _stopped_by(process: int) -> int | None:
    """The signal by which a child has stopped, each stop once; None if it has not."""
    with contextlib.suppress(ChildProcessError):
        stopped = os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOHANG)
        return stopped and stopped.si_status
    return None


def _controlling_terminal() -> int | None:
    with contextlib.suppress(OSError):
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    return None


def _foreground(terminal: int) -> int | None:
    """The group in the terminal's foreground; None if it is not the controlling terminal, or is gone."""
    with contextlib.suppress(OSError):
        return os.tcgetpgrp(terminal)
    return None


def _give(terminal: int, group: int) -> None:
    # The agent may have ended, or the terminal been closed.
    with contextlib.suppress(OSError):
        os.tcsetpgrp(terminal, group)
