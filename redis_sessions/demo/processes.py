"""The demo's worker processes: started, listened to, and ended with everything that they started.

They are plain subprocesses rather than `multiprocessing` ones: the demo then runs the same program as the containers of
`compose.yaml`, and its workers share nothing but Redis.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, Final, Self

from redis_sessions.client.password import PASSWORD_FILE_VARIABLE
from redis_sessions.demo.plan import PlannedTurn
from redis_sessions.demo.worker import Event

TICK_S: Final = 0.08
SILENCE_S: Final = 60.0
GRACE_S: Final = 2.0


class DemoError(Exception):
    """The demo can't continue; the text says why in one line."""


class Fleet:
    """Worker processes that run one plan. As a context manager it starts them, and ends them however the block ends.

    Each has a session of its own, so a terminal's Ctrl-C reaches only us, and we end them in order. Each also ends by itself
    when its stdin is closed, so none outlives us even if we are killed.
    """

    def __init__(self, arguments: Sequence[str], url: str, shares: list[list[PlannedTurn]], log: Path) -> None:
        """Args: the workers' arguments and URL; the plan of each; the file that takes what they write to stderr."""
        self._command = [sys.executable, "-m", "redis_sessions.demo.worker", "--plan-from-stdin", *arguments]
        # Any user of the machine can read arguments, but not the environment.
        self._environment = os.environ | {"REDIS_SESSIONS_URL": url, PASSWORD_FILE_VARIABLE: ""}
        self._shares = shares
        self._log = log
        self._workers: list[Popen[bytes]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack, self._log.open("ab") as log:
            for _ in self._shares:
                worker = Popen(
                    *(self._command, 0),  # unbuffered: what a dead worker did not take is not written again at the end
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
                self._workers.append(stack.enter_context(worker))
                stack.callback(_end, worker)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for worker in self._workers:
                worker.terminate()  # all at once; then each is waited for

    def events(self) -> Iterator[tuple[int, Event] | None]:
        """Each event with the number of its worker, from 0, until all have done their share; None every `TICK_S` seconds.

        All get their share at the same moment, when the last is ready. Raises DemoError when one fails.
        """
        starting = len(self._workers)
        rests = [b""] * starting
        heard_s = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for number, worker in enumerate(self._workers):
                selector.register(_pipe(worker.stdout), selectors.EVENT_READ, number)
            while selector.get_map():
                for ready, _ in selector.select(TICK_S):
                    heard_s = time.monotonic()
                    number = ready.data
                    if not (chunk := os.read(ready.fd, 65_536)):
                        selector.unregister(ready.fileobj)
                        self._check(self._workers[number])
                    *lines, rests[number] = (rests[number] + chunk).split(b"\n")
                    for event in (Event(**json.loads(line)) for line in lines):
                        if event.what != "ready":
                            yield number, event
                            continue
                        starting -= 1
                        if not starting:
                            self._hand_out()
                if time.monotonic() - heard_s > SILENCE_S:
                    raise DemoError(f"no worker has reported anything for {SILENCE_S:.0f} s")
                yield None

    def _hand_out(self) -> None:
        for worker, share in zip(self._workers, self._shares, strict=True):
            with contextlib.suppress(BrokenPipeError):  # it has just ended: that is read next
                _pipe(worker.stdin).write(json.dumps(share).encode() + b"\n")

    def _check(self, worker: Popen[bytes]) -> None:
        if code := worker.wait(GRACE_S):
            last_line = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise DemoError(": ".join([f"a worker ended with exit code {code}", *last_line]))


def _end(worker: Popen[bytes]) -> None:
    """End a worker that was asked to, by SIGKILL after a while, and what it has started."""
    if worker.poll() is not None:
        return
    give_up_at_s = time.monotonic() + GRACE_S
    # Its stdout ends with it. As long as it is not reaped, the number of its process group can't be given to another.
    with selectors.DefaultSelector() as selector:
        selector.register(_pipe(worker.stdout), selectors.EVENT_READ)
        while (left_s := give_up_at_s - time.monotonic()) > 0:
            if selector.select(left_s) and not os.read(_pipe(worker.stdout).fileno(), 65_536):
                break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
