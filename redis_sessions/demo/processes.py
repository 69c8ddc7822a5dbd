"""The demo's worker processes: started, listened to, and ended with everything that they started.

They are plain subprocesses rather than `multiprocessing` ones: the demo then runs the same program as the containers of
`compose.yaml`, and its workers share nothing but Redis.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import PIPE, Popen
from threading import Thread
from typing import Any, Final, TypeAlias

from redis_sessions.client.password import PASSWORD_FILE_VARIABLE
from redis_sessions.demo.plan import PlannedTurn
from redis_sessions.demo.worker import Event

TICK_S: Final = 0.08
SILENCE_S: Final = 60.0
GRACE_S: Final = 2.0
# Their pipes are typed as optional.
_Worker: TypeAlias = Any


class DemoError(Exception):
    """The demo can't continue; the text says why in one line."""


def run_workers(
    arguments: Sequence[str], url: str, shares: list[list[PlannedTurn]], log: Path
) -> Generator[tuple[int, Event] | None]:
    """Start a worker process for each share of the plan; all get their share at the same moment, when the last is ready.

    Yields each event with the number of its worker, from 0, until all have done their share; None if there was none for
    `TICK_S` seconds. However the generator ends, the workers end with it. Each has a session of its own, so a terminal's
    Ctrl-C reaches only us. Each also ends by itself when its stdin is closed, so none outlives us even if we are killed.

    Args: the workers' arguments and URL; the plan of each; the file that takes what they write to stderr. Raises DemoError
    when one fails.
    """
    command = [sys.executable, "-m", "redis_sessions.demo.worker", "--plan-from-stdin", *arguments]
    # Any user of the machine can read arguments, but not the environment.
    environment = os.environ | {"REDIS_SESSIONS_URL": url, PASSWORD_FILE_VARIABLE: ""}
    heard: SimpleQueue[tuple[int, Event | None]] = SimpleQueue()
    running: list[tuple[_Worker, Thread]] = []
    try:
        with log.open("ab") as stderr:
            for number in range(len(shares)):
                worker: _Worker = Popen(
                    command, stdin=PIPE, stdout=PIPE, stderr=stderr, env=environment, start_new_session=True
                )
                running.append((worker, Thread(target=_listen, args=(number, worker, heard))))
                running[-1][1].start()
        starting = working = len(running)
        heard_s = time.monotonic()
        while working:
            try:
                number, event = heard.get(timeout=TICK_S)
            except Empty:
                if time.monotonic() - heard_s > SILENCE_S:
                    raise DemoError(f"no worker has reported anything for {SILENCE_S:.0f} s") from None
                yield None
                continue
            heard_s = time.monotonic()
            if event is None:
                working -= 1
                if code := running[number][0].wait(GRACE_S):
                    last_line = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
                    raise DemoError(": ".join([f"a worker ended with exit code {code}", *last_line]))
            elif event.what != "ready":
                yield number, event
            else:
                starting -= 1
                for (worker, _), share in zip(running, shares, strict=True):
                    if not starting:
                        with suppress(BrokenPipeError):  # it has just ended: that is read next
                            # Unbuffered: what a dead worker did not take is not written again at the end.
                            os.write(worker.stdin.fileno(), json.dumps(share).encode() + b"\n")
    finally:
        _end(running)


def _listen(number: int, worker: _Worker, heard: SimpleQueue[tuple[int, Event | None]]) -> None:
    for line in worker.stdout:
        if line.endswith(b"\n"):  # the last line of one that was killed may be cut off
            heard.put((number, Event(**json.loads(line))))
    heard.put((number, None))


def _end(running: list[tuple[_Worker, Thread]]) -> None:
    """End the workers, by SIGKILL after a while, and what they have started."""
    for worker, _ in running:
        worker.terminate()
    for worker, listener in running:
        with worker:
            if worker.poll() is None:
                # Its stdout ends with it. As long as it is not reaped, the number of its group can't be given to another.
                listener.join(GRACE_S)
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(worker.pid, signal.SIGKILL)
            listener.join()
