"""The demo's worker processes: started, listened to, and ended with all they started themselves.

They are plain subprocesses rather than `multiprocessing` ones: so the demo runs the very program that the containers of
`compose.yaml` run, its workers share nothing but Redis, and no resource tracker or pickled state stands between them.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from types import FrameType, TracebackType
from typing import IO, Any, Final, NamedTuple, Self

from redis_sessions.client.password import PASSWORD_FILE_VARIABLE
from redis_sessions.demo.plan import Dispatch
from redis_sessions.demo.turns import Event

TICK_S: Final = 0.08
SILENCE_S: Final = 60.0
GRACE_S: Final = 2.0


class DemoError(Exception):
    """The demo can't go on; its text says why in one line."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP came.

    Attributes:
        exit_code: what a shell gives for a program that the signal ended.
    """

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(signal.Signals(number).name)


class Signals:
    """Notes signals that ask to end, to be acted on between two steps rather than in the middle of one.

    An exception that a handler raises may strike while a process is being started or ended, and leave it behind. Only a
    program's main thread may take signals; in any other this does nothing.
    """

    def __init__(self) -> None:
        self._caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        in_main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if in_main else ():
            # What is ignored stays so: that is how nohup keeps a program running.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._caught is not None:
            raise Interrupted(self._caught)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._caught = self._caught or number


class Said(NamedTuple):
    """An event, and the number of the worker that told it, from 0."""

    worker: int
    event: Event


class Fleet:
    """Worker processes that dispatch one plan. As a context manager it starts them, and ends them however the block ends.

    Each is in a session of its own, so that a terminal's Ctrl-C reaches only us, who end them in order; and it ends by
    itself when its stdin closes, so that it doesn't outlive us either if we are killed.
    """

    def __init__(self, arguments: Sequence[str], url: str, shares: list[list[Dispatch]], log: Path) -> None:
        """Args: arguments and url are the workers'; shares has the plan of each; log takes what they write to stderr."""
        self._command = [sys.executable, "-m", "redis_sessions.demo.worker", "--plan-from-stdin", *arguments]
        # Not an argument, since any user of the machine can read those.
        self._environment = os.environ | {"REDIS_SESSIONS_URL": url, PASSWORD_FILE_VARIABLE: ""}
        self._shares = shares
        self._log = log
        self._workers: list[Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            with self._log.open("ab") as log:
                for _ in self._shares:
                    self._workers.append(
                        Popen(
                            self._command, stdin=PIPE, stdout=PIPE, stderr=log, env=self._environment, start_new_session=True
                        )
                    )
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def events(self) -> Iterator[Said | None]:
        """What the workers say until all have done their share; None every `TICK_S` seconds besides.

        All get their share at the same moment, as soon as the last is ready. Raises DemoError when one ends badly.
        """
        idle = set(range(len(self._workers)))
        heard_s = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for number, worker in enumerate(self._workers):
                selector.register(_pipe(worker.stdout), selectors.EVENT_READ, _Reader(number))
            while selector.get_map():
                for ready, _ in selector.select(TICK_S):
                    heard_s = time.monotonic()
                    reader: _Reader = ready.data
                    events = reader.read(ready.fd)
                    if events is None:
                        selector.unregister(ready.fileobj)
                        self._check(self._workers[reader.number])
                        continue
                    for event in events:
                        if event.what == "ready":
                            idle.discard(reader.number)
                            if not idle:
                                self._hand_out()
                        else:
                            yield Said(reader.number, event)
                if time.monotonic() - heard_s > SILENCE_S:
                    raise DemoError(f"no worker has said anything for {SILENCE_S:.0f} s")
                yield None

    def _hand_out(self) -> None:
        for worker, share in zip(self._workers, self._shares, strict=True):
            with contextlib.suppress(BrokenPipeError):  # it has just ended: we read that next
                pipe = _pipe(worker.stdin)
                pipe.write(json.dumps(share).encode() + b"\n")
                pipe.flush()

    def _check(self, worker: Popen[bytes]) -> None:
        if code := worker.wait(GRACE_S):
            said = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise DemoError(": ".join([f"a worker ended with exit code {code}", *said]))

    def _end(self) -> None:
        running = [worker for worker in self._workers if worker.poll() is None]
        for worker in running:
            worker.terminate()
        give_up_at_s = time.monotonic() + GRACE_S
        for worker in running:
            # Its pipe ends with it. It is not reaped yet, so its number, and that of its group, is still its own.
            _drain(_pipe(worker.stdout), give_up_at_s)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.pid, signal.SIGKILL)
        for worker in self._workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                with contextlib.suppress(BrokenPipeError):
                    _pipe(pipe).close()


class _Reader:
    """Makes events of what one worker writes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._rest = b""

    def read(self, descriptor: int) -> list[Event] | None:
        """The events that came; None at the end."""
        chunk = os.read(descriptor, 65_536)
        if not chunk:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [Event(**json.loads(line)) for line in lines]


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _drain(pipe: IO[bytes], give_up_at_s: float) -> None:
    """Read a pipe to its end, but not beyond this time."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left_s := give_up_at_s - time.monotonic()) > 0:
            if selector.select(left_s) and not os.read(pipe.fileno(), 65_536):
                return
